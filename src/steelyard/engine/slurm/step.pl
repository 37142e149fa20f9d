# The step of a single task in perl: what `step.py` does for `task`, in a third of the time that python takes to begin. Its records,
# its words and its exit codes are the same (`tests/live/test_slurm_steps.py` runs both). No module is loaded: each costs what the
# rest of this costs together, so some things are asked of the kernel by number.
#
#     perl -C0 -e "$THIS" PREFIX COMMAND [ARGUMENT]...
my ($prefix, @command) = @ARGV;
my ($me, $task, @early) = ($$, 0);
my @names = (0, qw(HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG
    XCPU XFSZ VTALRM PROF WINCH IO PWR SYS), 0, 0, 'RTMIN', (map "NUM$_", 35 .. 63), 'RTMAX');
my @passed_on = grep { $_ && !/^(KILL|STOP|CHLD|TSTP|TTIN|TTOU)$/ } @names;
# fsync, getrusage and gettimeofday by the machine's kind (x86-64, 64-bit arm, risc-v, power); on others it does without
my ($fsync, $getrusage, $gettimeofday) =
    @{ { 62 => [74, 98, 96], 183 => [82, 165, 169], 243 => [82, 165, 169], 21 => [118, 77, 78] }->{ machine() } || [] };

# was said to the shell, not to the task
delete $ENV{PERL_BADLANG};
if (!claim()) {
    say_("another job of Slurm's runs this attempt already; this one ends");
    exit 75;
}
my @user = getpwuid $<;
my %who = (HOME => $user[7], USER => $user[0], LOGNAME => $user[0], SHELL => $user[8]);
$ENV{$_} = $who{$_} for grep { !exists $ENV{$_} } keys %who;
$SIG{CHLD} = 'DEFAULT';
$SIG{$_} = \&pass_on for @passed_on;
my $began = '"rank":0,"host":' . quote(line('/proc/sys/kernel/hostname')) . ',"started_at":' . now();
pipe my $told, my $tell;
$task = fork;
if (defined $task && !$task) {
    # what comes from here on is the task's own
    $SIG{$_} = 'DEFAULT' for @passed_on;
    exec { $command[0] } @command;
    syswrite $tell, $! + 0;
    kill 'KILL', $$;
}
my $failed = defined $task ? 0 : $! + 0;
close $tell;
sysread $told, $failed, 9 if !$failed;
if ($failed) {
    $! = $failed;
    my ($why, $code) = ("$!", $failed == 2 ? 127 : 126);
    say_("$command[0]: $why");
    record("{$began,\"exit_code\":$code,\"ended_at\":" . now() . ',"not_started":' . quote($why) . '}', 'exit', 1);
    exit $code;
}
kill $_, $task for splice @early;
my $facts = $began . look_around();
record("{$facts}", 'started', 0);
waitpid $task, 0;
my ($code, $signal) = ($? >> 8, $? & 127);
my $ended = $signal ? "\"exit_code\":null,\"signal\":$signal" : "\"exit_code\":$code,\"signal\":null";
record("{$facts,$ended,\"ended_at\":" . now() . spent() . '}', 'exit', 1);
if ($signal) {
    $SIG{ $names[$signal] } = 'DEFAULT' if $signal != 9;
    kill $signal, $$;
}
exit($signal ? 128 + $signal : $code);

# Of a single task we are asked to signal what the batch script became: that is us.
sub pass_on {
    my ($name) = @_;
    if ($$ != $me) {
        $SIG{$name} = 'DEFAULT';
        kill $name, $$;
    }
    elsif ($task) { kill $name, $task }
    else { push @early, $name }
}

sub claim {
    my $job = $ENV{SLURM_JOB_ID};
    my $mine = "$prefix.claim.$job.0";
    # a slurmctld that came back with an older state starts a job anew, by its old number
    $job .= " " . (delete $ENV{STEELYARD_LAUNCH} // "");
    my $file;
    if (!open($file, '>', $mine) || !print($file $job) || !close $file) {
        say_("$mine can't be written ($!): is the folder of `cluster attach` shared with this node?");
        return 1;
    }
    my $first = link($mine, "$prefix.claim") || $! != 17 || line("$prefix.claim") eq $job;
    unlink $mine;
    return $first;
}

# What the task really got, read back from the kernel; GPUs, as Slurm tells.
sub look_around {
    my ($cpus, $nodes) = ('', '');
    for (lines('/proc/self/status')) {
        $cpus = $1 if /^Cpus_allowed_list:\s*(\S+)/;
        $nodes = $1 if /^Mems_allowed_list:\s*(\S+)/;
    }
    my $gpus = $ENV{SLURM_STEP_GPUS} || $ENV{SLURM_JOB_GPUS} || '';
    return ',"cpus":' . list($cpus) . ',"memory_nodes":' . list($nodes) . ',"memory_bytes":' . memory_limit()
        . ',"gpus":[' . join(',', map { quote($_) } grep { $_ ne '' } split /,/, $gpus) . "],\"uid\":$<"
        . ',"cpus_allotted":' . ($ENV{SLURM_CPUS_ON_NODE} =~ /^(\d+)$/ ? $1 + 0 : 0) . ',"tasks_here":1';
}

# 0-2,5 is [0,1,2,5].
sub list {
    return '[' . join(',', map { my ($first, $last) = split /-/; $first .. (defined $last ? $last : $first) } split /,/, $_[0]) . ']';
}

# The lowest one in force for our control group; null without any.
sub memory_limit {
    my $lowest;
    for (lines('/proc/self/cgroup')) {
        my (undef, $controllers, $path) = split /:/, $_, 3;
        next if $controllers ne '' && !grep { $_ eq 'memory' } split /,/, $controllers;
        my ($root, $name) =
            $controllers ne '' ? ('/sys/fs/cgroup/memory', 'memory.limit_in_bytes') : ('/sys/fs/cgroup', 'memory.max');
        while ($path =~ m{[^/]}) {
            my $limit = line("$root$path/$name");
            $lowest = $limit if $limit =~ /^\d+$/ && 0 < $limit && $limit < 1 << 62 && !(defined $lowest && $lowest <= $limit);
            $path =~ s{/[^/]*$}{};
        }
    }
    return defined $lowest ? $lowest : 'null';
}

# Of the task and those of its children that it waited for.
sub spent {
    my $usage = "\0" x 256;
    if ($getrusage && syscall($getrusage, -1, $usage) == 0) {
        my ($user_s, $user_us, $system_s, $system_us, $peak_kib) = unpack 'q5', $usage;
        my $cpu_ms = ($user_s + $system_s) * 1000 + ($user_us + $system_us) / 1000;
        return ',"peak_memory_bytes":' . ($peak_kib << 10) . ',"cpu_ms":' . int($cpu_ms + 0.5);
    }
    my (undef, undef, $user_s, $system_s) = times;
    return ',"cpu_ms":' . int(($user_s + $system_s) * 1000 + 0.5);
}

# Microseconds since the epoch.
sub now {
    my $clock = "\0" x 16;
    return time . '000000' if !$gettimeofday || syscall($gettimeofday, $clock, 0) != 0;
    my ($s, $us) = unpack 'q2', $clock;
    return $s * 1000000 + $us;
}

# All of it or nothing, for whoever reads it: temp, fsync, rename. What need not outlive the node is not synced.
sub record {
    my ($text, $name, $lasting) = @_;
    my $path = "$prefix.0.$name";
    open(my $file, '>', "$path.tmp") || return;
    syswrite $file, "$text\n";
    syscall($fsync, fileno $file) if $lasting && $fsync;
    close $file;
    rename "$path.tmp", $path;
}

sub machine {
    open(my $file, '<', '/proc/self/exe') || return 0;
    read $file, my $head, 20;
    return unpack 'v', substr $head, 18;
}

sub lines {
    open(my $file, '<', $_[0]) || return ();
    my @lines = <$file>;
    chomp @lines;
    return @lines;
}

sub line {
    my ($first) = lines($_[0]);
    return defined $first ? $first : '';
}

sub quote {
    my ($text) = @_;
    $text =~ s/([^ -~]|["\\])/sprintf '\\u%04x', ord $1/ge;
    return "\"$text\"";
}

sub say_ { print STDERR "steelyard-step: $_[0]\n" }
