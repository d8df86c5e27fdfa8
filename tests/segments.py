"""TCP segments in Ethernet frames, made and judged the plain way."""

import struct


def ones_sum(data):
    """The one's-complement sum of 16-bit words (RFC 1071)."""
    data += bytes(len(data) & 1)
    total = sum(struct.unpack('!%dH' % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return total


def segment(version, sequence, payload, flags=0x10, options=b'', ident=7, **change):
    """An Ethernet frame with a TCP segment, checksums right."""
    ack, window, ports, dont_fragment = (change.get(*each) for each in (
        ('ack', 99), ('window', 500), ('ports', (4000, 5201)), ('dont_fragment', 0x4000)))
    tcp = struct.pack('!HHIIBBHHH', ports[0], ports[1], sequence & 0xffffffff, ack,
                      (20 + len(options)) // 4 << 4, flags, window, 0, 0) + options
    source, target = (b'\x0a\0\0\1', b'\x0a\0\0\2') if version == 4 else (
        b'\xfd' + bytes(14) + b'\1', b'\xfd' + bytes(14) + b'\2')
    pseudo = source + target + struct.pack('!IHH', len(tcp) + len(payload), 0, 6)
    check = 0xffff - ones_sum(pseudo + tcp + payload)
    tcp = tcp[:16] + struct.pack('!H', check) + tcp[18:]
    if version == 4:
        ip = struct.pack('!BBHHHBBH', 0x45, 0, 20 + len(tcp) + len(payload), ident, dont_fragment,
                         64, 6, 0) + source + target
        ip = ip[:10] + struct.pack('!H', 0xffff - ones_sum(ip)) + ip[12:]
        kind = b'\x08\x00'
    else:
        ip = struct.pack('!IHBB', 0x60000000, len(tcp) + len(payload), 6, 64) + source + target
        kind = b'\x86\xdd'
    return b'\2\0\0\0\0\1' + b'\2\0\0\0\0\2' + kind + ip + tcp + payload


def is_right(version, frame):
    """Are the checksums of a frame right, as the kernel checks them?"""
    ip = frame[14:]
    if version == 4:
        if ones_sum(ip[:20]) != 0xffff:
            return False
        addresses, tcp = ip[12:20], ip[20:]
    else:
        addresses, tcp = ip[8:40], ip[40:]
    return ones_sum(addresses + struct.pack('!IHH', len(tcp), 0, 6) + tcp) == 0xffff
