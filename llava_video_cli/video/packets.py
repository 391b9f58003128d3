"""What packets say without being decoded: the units of H.264 and HEVC, a flag of VP8, the checksums of FFV1.

ITU-T H.264 and H.265, 7.3.1 (units); ISO/IEC 14496-15 (lengths in the place of start codes); RFC 9043, 4.9 (slices).
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

_SLICE, _IDR = 1, 5  # nal_unit_type
_B = 1  # slice_type
# First bytes of units that no other picture needs: slices of pictures that none refers to, and delimiters.
_DISPOSABLE = {"h264": frozenset({0x01, 0x09}), "hevc": frozenset({*range(0x00, 0x20, 4), 0x46})}
_UNIT_BYTES = 16  # of a unit's beginning, which has its slice's type
# Behind each slice of FFV1 that has a checksum: its size (3 bytes), an error flag, the checksum (4 bytes).
_SLICE_SIZE_BYTES, _FOOTER_BYTES = 3, 8
_MOST_SLICES = 1024  # FFmpeg's own bound; a packet of zeros would have one every 8 bytes
_CRC_STARTS = (0, 0x5E31029E)  # of versions 3 and 4; what a slice and its checksum give again
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))  # the bits of each byte


def has_idr(packet: Packet[VideoStream]) -> bool:
    """Return whether an H.264 packet has an IDR slice: no later picture is shown before it (ITU-T H.264, 7.4.1.2.4)."""
    return any(unit[0] & 0x1F == _IDR for unit in _units(packet))


def has_b_slice(packet: Packet[VideoStream]) -> bool:
    """Return whether an H.264 packet has a B slice (ITU-T H.264, 7.3.3)."""
    for unit in _units(packet):
        if unit[0] & 0x1F in (_SLICE, _IDR):
            value, left, number = int.from_bytes(unit[1:], "big"), 8 * len(unit) - 8, 0
            for _ in range(2):  # first_mb_in_slice, slice_type: each has so many bits as zeros before it, and one more
                left = max(0, 2 * value.bit_length() - left - 1)
                number, value = (value >> left) - 1, value & ((1 << left) - 1)
            if number % 5 == _B:
                return True
    return False


def is_disposable(packet: Packet[VideoStream], codec: str) -> bool:
    """Return whether no other picture needs a packet of H.264 or HEVC; false for other codecs."""
    beginnings = _DISPOSABLE.get(codec, frozenset())
    units = _units(packet) if beginnings else []
    return bool(units) and all(unit[0] in beginnings for unit in units)


def _units(packet: Packet[VideoStream]) -> list[bytes]:
    """Return the beginnings of the units of a packet of H.264 or HEVC, but for empty ones; none if they are broken."""
    content = bytes(packet)
    if content[:4] == b"\0\0\0\1" or (content[:3] == b"\0\0\1" and not _has_lengths(packet)):
        return [unit[:_UNIT_BYTES] for unit in content.split(b"\0\0\1")[1:] if unit]
    units, at = list[bytes](), 0  # mp4 and Matroska: a length of 4 bytes before each unit
    while at + 5 <= len(content):
        units.append(content[at + 4 : at + 4 + _UNIT_BYTES])
        at += 4 + int.from_bytes(content[at : at + 4], "big")
    return units if at == len(content) else []


def _has_lengths(packet: Packet[VideoStream]) -> bool:
    """Return whether its stream's units begin with lengths: one of 256 to 511 bytes looks like a start code."""
    return (packet.stream.codec_context.extradata or b"\0\0")[:2] != b"\0\0"


def delimiter(context: VideoCodecContext) -> bytes:
    """Return a packet of H.264 without a picture: a unit of one byte behind its length, or a start code of 4 bytes."""
    header = context.extradata or b""
    return (1).to_bytes((header[4] & 3) + 1 if len(header) > 4 and header[0] == 1 else 4, "big") + b"\x09"


def is_alternate_reference(packet: Packet[VideoStream]) -> bool:
    """Return whether a VP8 packet has a picture that is not shown, but which others need."""
    return not memoryview(packet)[0] & 0x10  # show_frame, RFC 6386 section 9.1


def has_wrong_checksum(packet: Packet[VideoStream]) -> bool:
    """Return whether a slice of an FFV1 packet is damaged: FFmpeg's decoder hides that. False without checksums.

    The sizes of the slices, read from the last one on, add up to the packet only if there are checksums.
    """
    content = bytes(packet)
    slices, end = list[bytes](), len(content)
    while end >= _FOOTER_BYTES and len(slices) < _MOST_SLICES:
        footer = end - _FOOTER_BYTES
        start = footer - int.from_bytes(content[footer : footer + _SLICE_SIZE_BYTES], "big")
        slices.append(content[max(0, start) : end])
        end = start
    return end == 0 and any(all(_crc(each, start) != start for start in _CRC_STARTS) for each in slices)


def _crc(content: bytes, start: int) -> int:
    """Return the CRC-32 of bytes whose highest bit comes first, as zlib's, whose bits are in the other order."""
    return zlib.crc32(content.translate(_REVERSED), start ^ 0xFFFFFFFF) ^ 0xFFFFFFFF
