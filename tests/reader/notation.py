"""The notation and the algorithms of secretfs-vault(5): how bytes decode, and what opens them."""

import functools
import hashlib
import hmac
import io
import struct
from types import SimpleNamespace

from nacl.bindings import crypto_aead_xchacha20poly1305_ietf_decrypt as xchacha20_poly1305_open
from nacl.exceptions import CryptoError

NUMBERS = {"u8": "<B", "u16": "<H", "u32": "<I", "u64": "<Q", "i64": "<q"}
ENUMS, LAYOUTS = {}, {}
le32, le64 = struct.Struct("<I").pack, struct.Struct("<Q").pack
hmac_sha256 = functools.partial(hmac.digest, digest="sha256")

class Refusal(Exception):
    """Why a vault is refused: the kind of check (of the page's table), a text, the exit code."""

def demand(condition, kind, message, exit_code=6):
    if not condition:
        raise Refusal(kind, message, exit_code)
def read(stream, encoding):
    """A field. What is no encoding is a ValueError (as of UTF-8), or an IndexError of an enum."""
    word, _, item = encoding.partition(" ")
    if word in NUMBERS:
        return struct.unpack(NUMBERS[word], read(stream, f"x{struct.calcsize(NUMBERS[word])}"))[0]
    if word in ENUMS:
        variant = ENUMS[word].split()[read(stream, "u32")]
        layout = LAYOUTS.get(f"{word} {variant}")
        return read_fields(stream, layout, variant=variant) if layout else variant
    if word in LAYOUTS:
        return read_fields(stream, LAYOUTS[word])
    if word in ("bool", "option"):
        number = read(stream, "u8")
        if number > 1:
            raise ValueError(f"{number} is no {word}")
        return number == 1 if word == "bool" else read(stream, item) if number else None
    if word in ("list", "list32"):
        items, count = [], read(stream, "u64" if word == "list" else "u32")
        while len(items) < count:  # which is not trusted with memory: the bytes end first
            items.append(read(stream, item))
        return items
    if word == "rest":
        return stream.read()
    fixed = word.startswith("x")
    length = int(word[1:]) if fixed else read(stream, "u8" if word == "bytes8" else "u64")
    content = stream.read(min(length, 1 << 30))
    if len(content) < length:
        raise ValueError("a field goes past the end")
    return content.decode("utf-8") if word == "text" else content
def read_fields(stream, layout, **fields):
    for field in layout.split(", "):
        name, encoding = field.split(" ", 1)
        fields[name] = read(stream, encoding)
    return SimpleNamespace(**fields)
def decoded(kind, record, value, layout, exit_code=6):
    """The fields of a whole value; what does not decode is damage of the given kind."""
    stream = io.BytesIO(value)
    try:
        fields = read_fields(stream, LAYOUTS[layout])
    except (ValueError, IndexError) as error:
        raise Refusal(kind, f"{record}: {error}", exit_code) from error
    demand(not stream.read(), kind, f"{record}: bytes are left over", exit_code)
    return fields
def sha256(message):
    return hashlib.sha256(message).digest()
def expand(key, info):
    """HKDF-Expand for 32 bytes, which is one block."""
    return hmac_sha256(key, info + b"\x01")
def open_sealed(key, aad, sealed):
    """The plain text, or None: the caller knows what it means that a sealed text does not open."""
    try:
        return xchacha20_poly1305_open(sealed[24:], aad, sealed[:24], key)
    except (CryptoError, ValueError):
        return None
def sum_of(hashes):
    total = sum(int.from_bytes(item, "little") for item in hashes)
    return (total % (1 << 256)).to_bytes(32, "little")
