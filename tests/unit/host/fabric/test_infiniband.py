"""Are a machine's InfiniBand ports read as the kernel shows them, without anything that names the hardware's owner?"""

from __future__ import annotations

import json
from pathlib import Path

from recorded import recorded
from steelyard.host.fabric.infiniband import read_infiniband
from steelyard.model.fabric import InfinibandPort


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


def test_ports_are_read_with_state_and_rate(tmp_path: Path) -> None:
    at = "sys/class/infiniband"
    write(
        tmp_path,
        {
            f"{at}/mlx5_10/ports/1/state": "1: DOWN\n",
            f"{at}/mlx5_10/ports/1/rate": "2.5 Gb/sec (1X SDR)\n",
            f"{at}/mlx5_2/node_guid": "e09d:7303:00aa:bbcc\n",
            f"{at}/mlx5_2/board_id": "MT_0000000838\n",
            f"{at}/mlx5_2/fw_ver": "28.41.1000\n",
            f"{at}/mlx5_2/ports/1/state": "4: ACTIVE\n",
            f"{at}/mlx5_2/ports/1/phys_state": "5: LinkUp\n",
            f"{at}/mlx5_2/ports/1/rate": "400 Gb/sec (4X NDR)\n",
            f"{at}/mlx5_2/ports/1/link_layer": "InfiniBand\n",
            f"{at}/mlx5_2/ports/1/gids/0": "fe80::e09d\n",
        },
    )
    (tmp_path / at / "mlx5_2/device").symlink_to("../../../0000:18:00.0")
    up, down = read_infiniband(tmp_path)
    assert up == InfinibandPort(
        "mlx5_2", 1, "ACTIVE", "LinkUp", 400.0, "4X NDR", "InfiniBand", "MT_0000000838", "28.41.1000", "0000:18:00.0"
    )
    assert down == InfinibandPort("mlx5_10", 1, state="DOWN", gbps=2.5, speed="1X SDR")
    assert "e09d" not in repr(up)


def test_odd_files_are_unknown_and_a_machine_without_has_none(tmp_path: Path) -> None:
    assert read_infiniband(tmp_path / "nothing") == ()
    write(tmp_path, {"mlx5_0/ports/1/rate": "fast\n", "mlx5_0/ports/x/rate": "1 Gb/sec\n", "mlx5_0/ports/1/state": "\n"})
    assert read_infiniband(tmp_path) == (InfinibandPort("mlx5_0", 1),)


def test_the_recorded_h100_machine(tmp_path: Path) -> None:
    files: dict[str, str] = json.loads(recorded("sysfs/infiniband-h100.json").read_text())
    write(tmp_path, {name: content for name, content in files.items() if name.startswith("sys-class-infiniband-h100.0/")})
    ports = read_infiniband(tmp_path / "sys-class-infiniband-h100.0")
    assert len(ports) >= 8 and {port.device for port in ports} >= {"mlx5_0", "mlx5_4", "mlx5_9"}
    assert {(port.state, port.gbps, port.link) for port in ports if port.speed == "4X NDR"} == {("ACTIVE", 400.0, "InfiniBand")}
