"""Writes tests/vectors/format1.txt: every record of a small vault, computed from DESIGN's words
with nothing of secretfs's own code. `python3 format1.py > format1.txt`; needs `cryptography`.

The bytes must never change: what they pin is the format of vaults that exist.
"""
import hashlib
import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305


def rotate(x, n):
    return ((x << n) | (x >> (32 - n))) & 0xFFFFFFFF


def hchacha20(key, nonce16):
    s = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce16))

    def quarter(a, b, c, d):
        s[a] = (s[a] + s[b]) & 0xFFFFFFFF
        s[d] = rotate(s[d] ^ s[a], 16)
        s[c] = (s[c] + s[d]) & 0xFFFFFFFF
        s[b] = rotate(s[b] ^ s[c], 12)
        s[a] = (s[a] + s[b]) & 0xFFFFFFFF
        s[d] = rotate(s[d] ^ s[a], 8)
        s[c] = (s[c] + s[d]) & 0xFFFFFFFF
        s[b] = rotate(s[b] ^ s[c], 7)

    for _ in range(10):
        quarter(0, 4, 8, 12), quarter(1, 5, 9, 13), quarter(2, 6, 10, 14), quarter(3, 7, 11, 15)
        quarter(0, 5, 10, 15), quarter(1, 6, 11, 12), quarter(2, 7, 8, 13), quarter(3, 4, 9, 14)
    return struct.pack("<8I", *s[0:4], *s[12:16])


nonces = 0


def seal(key, aad, plain):
    """nonce || ciphertext || tag, XChaCha20-Poly1305; nonces count up."""
    global nonces
    nonces += 1
    nonce = bytes([nonces]) * 24
    inner = ChaCha20Poly1305(hchacha20(key, nonce[:16]))
    return nonce + inner.encrypt(bytes(4) + nonce[16:], plain, aad)


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


def sha(*parts):
    return hashlib.sha256(b"".join(parts)).digest()


def subkey(key, label, *more):
    return mac(key, b"secretfs/1 " + label, *more, b"\x01")  # HKDF-Expand, 32 bytes


u8 = lambda n: struct.pack("<B", n)
u16 = lambda n: struct.pack("<H", n)
u32 = lambda n: struct.pack("<I", n)
u64 = lambda n: struct.pack("<Q", n)
i64 = lambda n: struct.pack("<q", n)
data = lambda b: u64(len(b)) + b
pad = lambda b, to: b + bytes(-len(b) % to)

MASTER = bytes([7]) * 32
VAULT = b"0123456789abcdef"
URI = b"local-kms://default"
SYSTEM, ROOT, FILE = 0, 1, 2
METADATA = {SYSTEM: bytes([0x10]) * 32, ROOT: bytes([0x11]) * 32, FILE: bytes([0x12]) * 32}
CONTENT = bytes([0x22]) * 32
TEXT = b"correct horse"


def aad(kind, *fields):
    return u8(1) + u8(kind) + VAULT + b"".join(fields)


def wrapped(node, role, version, key):
    bound = aad(1, u64(node), u8(role), u64(version), u64(1))
    return seal(subkey(MASTER, b"master wrap"), bound, key)


def attributes(mode, body):
    times = b"".join(i64(1000 + n) + u32(n) for n in range(4))
    xattrs = u64(1) + data(b"user.a") + data(b"b")
    return u32(mode) + u32(1) + u32(2) + u32(1) + times + xattrs + body


def node(number, kind, revision, text):
    bound = aad(2, u64(number), u8(kind), u64(revision))
    wrap = wrapped(number, 0, 0, METADATA[number])
    sealed = seal(subkey(METADATA[number], b"metadata attributes"), bound, pad(text, 256))
    return u8(kind) + u64(revision) + wrap + data(sealed)


header = b"secretfs" + u16(1) + u16(1) + u16(1) + VAULT
event = i64(1700000000) + u8(0) + u32(0) + u64(1) + data(URI)
history = u64(1) + sha(b"secretfs event", bytes(32), u64(1), event)
check = subkey(MASTER, b"master check", sha(header), VAULT, u64(1))
wrap = data(URI) + data(b"default@1") + data(b"blob") + i64(1700000000)
generation = u64(1) + u32(1) + check + i64(1700000000) + u64(1) + wrap
body = u64(1) + u64(1) + generation + u8(0) + history
keyring_mac = mac(subkey(MASTER, b"master keyring-mac"), b"keyring", sha(header), sha(body))
checksum = sha(
    b"secretfs keyring checksum".ljust(32), sha(header), sha(body), sha(u64(1), keyring_mac)
)
keyring = data(body) + u64(1) + u64(1) + keyring_mac + checksum

tag = mac(subkey(METADATA[ROOT], b"metadata name-tag"), b"password")
name = u64(FILE) + u8(1) + u8(8) + b"password".ljust(255, b"\0")
sealed_name = seal(subkey(METADATA[ROOT], b"metadata entry"), aad(3, u64(ROOT), tag, u32(1)), name)
entry = u32(1) + data(sealed_name)
element = mac(subkey(METADATA[ROOT], b"metadata set"), b"e", tag, sha(entry))

system = node(SYSTEM, 8, 1, attributes(0, u32(3) + u32(0)))
directory = u32(1) + u64(ROOT) + bytes(32) + u64(1) + u32(0) + element + u32(1)
root = node(ROOT, 2, 3, attributes(0o755, directory))
file = node(FILE, 1, 5, attributes(0o640, u32(0) + u64(4) + u64(2) + u64(len(TEXT))))

extent = u64(len(TEXT)) + u32(1)
of_version = u64(FILE) + u64(4)
sealed_extent = seal(subkey(CONTENT, b"content version"), aad(4, of_version), extent)
version = wrapped(FILE, 1, 4, CONTENT) + data(sealed_extent)
chunk = seal(
    subkey(CONTENT, b"content chunk"), aad(5, of_version, u32(0), u8(1)), pad(TEXT, 256)
)

summing = subkey(METADATA[SYSTEM], b"metadata set")
elements = [mac(summing, b"n", u64(n), sha(u64(1), r)) for n, r in ((0, system), (1, root), (2, file))]
elements.append(mac(summing, b"v", of_version, sha(u64(1), version)))
total = sum(int.from_bytes(e, "little") for e in elements) % 2**256
plain_state = u64(9) + u64(1) + u64(3) + u64(3) + u64(1) + total.to_bytes(32, "little")
state = seal(subkey(METADATA[SYSTEM], b"metadata state"), aad(6), pad(plain_state, 256))

# A directory whose entries are being moved under another key: one has not moved, one has.
MOVING = 3
METADATA[MOVING] = bytes([0x13]) * 32
BEFORE = bytes([0x14]) * 32


def filed(key, epoch, number, text):
    tag = mac(subkey(key, b"metadata name-tag"), text)
    name = u64(number) + u8(1) + u8(len(text)) + text.ljust(255, b"\0")
    bound = aad(3, u64(MOVING), tag, u32(epoch))
    record = u32(epoch) + data(seal(subkey(key, b"metadata entry"), bound, name))
    return tag, record, mac(subkey(key, b"metadata set"), b"e", tag, sha(record))


stays_tag, stays, left = filed(BEFORE, 1, 4, b"stays")
moved_tag, moved, gone = filed(METADATA[MOVING], 2, 5, b"moved")
both = sum(int.from_bytes(e, "little") for e in (left, gone)) % 2**256
directory = u32(4) + u64(ROOT) + bytes([9]) * 32 + u64(2) + u32(0) + both.to_bytes(32, "little") + u32(2)
moving = node(MOVING, 2, 7, attributes(0o700, directory + u32(1) + u64(1) + left))
# The previous key stands where others have theirs, and the new one at the end.
moving = moving[:9] + wrapped(MOVING, 0, 0, BEFORE) + moving[9 + 72:] + u64(1) + moving[9:9 + 72]

# The system node and the state while the sums are made anew: up to the root directory so far.
AFTER = bytes([0x15]) * 32
METADATA[SYSTEM], before = AFTER, METADATA[SYSTEM]
summing_system = node(SYSTEM, 8, 2, attributes(0, u32(3) + u32(0)))
summing_system = (
    summing_system[:9]
    + wrapped(SYSTEM, 0, 0, before)
    + summing_system[9 + 72:]
    + u64(1)
    + summing_system[9:9 + 72]
)
nodes = ((0, summing_system), (1, root), (2, file))


def sums(key, over):
    key = subkey(key, b"metadata set")
    elements = [mac(key, b"n", u64(n), sha(u64(1), r)) for n, r in over]
    if len(over) == 3:
        elements.append(mac(key, b"v", of_version, sha(u64(1), version)))
    return (sum(int.from_bytes(e, "little") for e in elements) % 2**256).to_bytes(32, "little")


plain_state = u64(10) + u64(1) + u64(3) + u64(3) + u64(1) + sums(before, nodes)
plain_state += u8(1) + u8(1) + u32(0) + u64(ROOT) + u64(2) + u64(0)
plain_state += sums(before, nodes[:2]) + sums(AFTER, nodes[:2])
summing_state = seal(subkey(AFTER, b"metadata state"), aad(6), pad(plain_state, 256))

for what in "header keyring event system root file tag entry version chunk state".split() + [
    "stays_tag", "stays", "moved_tag", "moved", "moving", "summing_system", "summing_state"
]:
    print(what, globals()[what].hex())
