"""Who vouches for our programs on other machines? The home's own certificate authority: one key in one file of the home.

Made with the first certificate and never again while the file is there: another one would lock out every machine that holds
certificates of this. Nothing else trusts it, and it is asked for nothing but our own roles (`model/certificate.py`), so there are
no lists of what was taken back: certificates are short-lived, and who is to be shut out is dropped by the server.
Never reads the clock: times are arguments, in microseconds since the epoch.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.config import write_file
from steelyard.errors import EdgeFailed, StoreDamaged
from steelyard.model.certificate import Certificate, Identity, Role, parse_identity

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

#: codes: the file can't be read or written; it holds no authority
UNREADABLE, DAMAGED = "authority-failed", "authority-damaged"
#: of the authority itself
YEARS = 30
#: clocks of other machines may be behind by so much
SKEW = datetime.timedelta(minutes=10)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Authority:
    """`path`: its key and its certificate, mode 0600."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def certificate_pem(self, now: int) -> bytes:
        """What everybody checks certificates against. Errors as of `issue`."""
        return _pem(self._obtain(now)[1])

    def issue(self, role: Role, name: str, hosts: Iterable[str], now: int, life_s: float) -> Certificate:
        """A new key and a certificate for it. `hosts`: names and addresses that a server is reached by; a client needs none.
        The authority is made where there is none. Raises StoreDamaged or EdgeFailed, with nothing changed."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        signer, own = self._obtain(now)
        identity = Identity(role, name)
        key = ec.generate_private_key(ec.SECP256R1())
        uses = [ExtendedKeyUsageOID.SERVER_AUTH] * role.serves + [ExtendedKeyUsageOID.CLIENT_AUTH] * role.asks
        names = [x509.UniformResourceIdentifier(identity.address), *map(_host, hosts)]
        until = _when(now) + datetime.timedelta(seconds=life_s)
        certificate = (
            _begin(f"{role} {name}"[:64], own.subject, key, now, until)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
            .sign(signer, hashes.SHA256())
        )
        key_pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        return Certificate(identity, key_pem, _pem(certificate), now, _micros(until))

    def _obtain(self, now: int) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
        try:
            file = self._path.read_bytes()
        except FileNotFoundError:
            return self._make(now)
        except OSError as err:
            text = (
                f"The authority's file {self._path} can't be read ({err.strerror}). Nothing was changed, and what runs goes on."
            )
            raise EdgeFailed(text, code=UNREADABLE) from err
        return self._read(file)

    def _read(self, file: bytes) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        try:
            key, certificate = load_pem_private_key(file, None), x509.load_pem_x509_certificate(file)
        except (ValueError, TypeError):
            key = certificate = None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or certificate is None or certificate.public_key() != key.public_key():
            raise StoreDamaged(
                f"The authority's file {self._path} is damaged, so no machine can be given a certificate. What runs goes on. "
                "Bring it back from a backup; or move it away, which has another made: machines of pools must then start anew.",
                code=DAMAGED,
            )
        return key, certificate

    def _make(self, now: int) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(f"Steelyard {self._path.parent}"[:64])
        certificate = (
            _begin(f"Steelyard {self._path.parent}"[:64], subject, key, now, _when(now) + datetime.timedelta(days=365 * YEARS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_signs_only(), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        file = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_file(self._path, file + _pem(certificate))
        except OSError as err:
            text = f"The authority's file {self._path} could not be written ({err.strerror}). Nothing was changed."
            raise EdgeFailed(text, code=UNREADABLE) from err
        return key, certificate


def load_certificate(key_pem: bytes, certificate_pem: bytes) -> Certificate | None:
    """One that was issued earlier, as it lies in files; None where that is none of ours."""
    from cryptography import x509

    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (ValueError, x509.ExtensionNotFound):
        return None
    identity = parse_identity(names.get_values_for_type(x509.UniformResourceIdentifier))
    if identity is None:
        return None
    begun, ends = certificate.not_valid_before_utc + SKEW, certificate.not_valid_after_utc
    return Certificate(identity, key_pem, certificate_pem, _micros(begun), _micros(ends))


def _begin(
    subject: str, issuer: x509.Name, key: EllipticCurvePrivateKey, now: int, until: datetime.datetime
) -> x509.CertificateBuilder:
    from cryptography import x509

    builder = x509.CertificateBuilder().subject_name(_name(subject)).issuer_name(issuer).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(_when(now) - SKEW).not_valid_after(until)


def _signs_only() -> x509.KeyUsage:
    from cryptography import x509

    others = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        **dict.fromkeys(others, False), key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False
    )


def _name(text: str) -> x509.Name:
    from cryptography import x509

    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(certificate: x509.Certificate) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM)


def _when(now: int) -> datetime.datetime:
    # whole seconds are all that a certificate knows
    return _EPOCH + datetime.timedelta(seconds=now // 1_000_000)


def _micros(when: datetime.datetime) -> int:
    return (when - _EPOCH) // datetime.timedelta(microseconds=1)
