"""The real sslyze, offering h2 by ALPN, with sslyze's own arguments.

sslyze never offers ALPN, and a listener of the mesh ends the handshake of whoever does not. OpenSSL, which nassl brings
into sslyze, can offer it; only no Python name leads to the function. So it is looked up in the symbol table of nassl's
library (ELF, 64 bits) and called for each connection. The scans themselves are untouched. Old protocols are tried by
another library of nassl's without ALPN: our listeners refuse those for their version, which comes first.
"""
import ctypes
import struct
import sys

from nassl import _nassl
from nassl.ssl_client import SslClient
from sslyze.__main__ import main

PROTOCOLS = b"\x02h2"
SYMTAB = 2


def address_of(path, wanted):
    """Where a function lies in this process: where the library was loaded, and the function's place in it."""
    with open(path, "rb") as file:
        elf = file.read()
    assert elf[:6] == b"\x7fELF\x02\x01", "not a 64-bit little-endian ELF file"
    (sections_at,) = struct.unpack_from("<Q", elf, 0x28)
    size, count = struct.unpack_from("<HH", elf, 0x3A)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, sections_at + number * size) for number in range(count)]
    with open("/proc/self/maps") as maps:
        mapped = [line.split() for line in maps if line.rstrip().endswith(path)]
    (base,) = [int(words[0].split("-")[0], 16) for words in mapped if int(words[2], 16) == 0]
    for section in (section for section in sections if section[1] == SYMTAB):
        names = sections[section[6]][4]
        for at in range(section[4], section[4] + section[5], 24):
            name, _, _, _, value, _ = struct.unpack_from("<IBBHQQ", elf, at)
            if elf.startswith(wanted + b"\0", names + name):
                return base + value
    raise SystemExit(f"{path} has no {wanted.decode()}: another nassl than the pinned one?")


offer = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_uint)(
    address_of(_nassl.__file__, b"SSL_set_alpn_protos")
)
make_objects = SslClient._init_ssl_objects


def make_objects_that_offer_h2(self):
    make_objects(self)
    # An object of nassl's is Python's header and then the pointer to OpenSSL's.
    ssl = ctypes.c_void_p.from_address(id(self._ssl) + object.__basicsize__).value
    assert offer(ssl, PROTOCOLS, len(PROTOCOLS)) == 0


SslClient._init_ssl_objects = make_objects_that_offer_h2
if __name__ == "__main__":
    sys.exit(main())
