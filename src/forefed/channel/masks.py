"""Keys and masks of a secure sum, from the library ``cryptography``.

X25519 (RFC 7748) and HKDF-SHA256 (RFC 5869) for keys that two clients share, AES-256 in counter
mode for masks, AES-256-GCM for what clients send each other through the server. Nothing here is
drawn from a run's public key.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from forefed.channel.fixed_point import Words
from forefed.core.errors import ProtocolError

PUBLIC_BYTES = 32
TAG_BYTES = 16
_BLOCK = 1 << 18
"""Bytes of a mask at once: what a cache holds."""
_ZEROS = bytes(_BLOCK)
_ONCE = bytes(12)
"""The nonce of a key that seals one message in its life."""


def derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """32 bytes by HKDF-SHA256."""
    return HKDF(SHA256(), 32, salt, info).derive(secret)


@dataclass(frozen=True, repr=False)
class KeyPair:
    """A private X25519 key, and the public one, 32 bytes."""

    private: X25519PrivateKey
    public: bytes

    @staticmethod
    def of(seed: bytes, salt: bytes, info: bytes) -> KeyPair:
        """The pair that follows from a secret seed."""
        private = X25519PrivateKey.from_private_bytes(derive(seed, salt, info))
        return KeyPair(private, private.public_key().public_bytes_raw())

    def agree(self, other: bytes) -> bytes:
        """What the holder of ``other``'s private key computes, too; 32 bytes, to derive keys from.

        Raises:
            ProtocolError: no public key.
        """
        try:
            return self.private.exchange(X25519PublicKey.from_public_bytes(other))
        except ValueError:
            raise ProtocolError("what should be a public key is none") from None


def usable(public: bytes) -> bool:
    """Are these two public keys with which others can agree on anything? (Points of small order
    give everybody the same.)"""
    probe = X25519PrivateKey.generate()
    try:
        for part in (public[:PUBLIC_BYTES], public[PUBLIC_BYTES:]):
            probe.exchange(X25519PublicKey.from_public_bytes(part))
    except ValueError:
        return False
    return True


def seal(key: bytes, text: bytes) -> bytes:
    """Encrypted and authenticated. A key seals one text in its life."""
    return AESGCM(key).encrypt(_ONCE, text, None)


def unseal(key: bytes, sealed: bytes) -> bytes:
    """Raises ProtocolError: it was changed, or is another's."""
    try:
        return AESGCM(key).decrypt(_ONCE, sealed, None)
    except (InvalidTag, ValueError):
        raise ProtocolError("a sealed share was changed on its way, or is another's") from None


def add_mask(words: Words, key: bytes, sign: int) -> None:
    """Add (1) or subtract (-1) the mask of this key, in place, modulo 2^32 or 2^64."""
    stream = Cipher(AES(key), CTR(bytes(16))).encryptor()
    buffer = bytearray(_BLOCK + 15)
    for part in (words.about, words.values):
        step = _BLOCK // part.itemsize
        for start in range(0, len(part), step):
            some = part[start : start + step]
            stream.update_into(_ZEROS[: some.nbytes], buffer)
            mask = np.frombuffer(buffer, part.dtype, len(some))
            if sign > 0:
                np.add(some, mask, out=some)
            else:
                np.subtract(some, mask, out=some)
