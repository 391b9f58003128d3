"""AV1 frames that no other one refers to: dav1d can skip all of them or none.

AV1 bitstream specification: 5.3 (OBUs), 5.5 (sequence header), 5.9.2 (frame header). A stream with fields that ordinary
encoders leave out (timing, frame numbers, layers) has nothing skipped.
"""

from __future__ import annotations

from dataclasses import dataclass

_SEQUENCE_HEADER = 0x0A  # first bytes of OBUs that belong to no layer and tell their size
_DELIMITER, _FRAME = 0x12, 0x32
_SHOWN_INTER_FRAME = 0b0011  # show_existing_frame 0, frame_type 1, show_frame 1
_PER_FRAME = 2  # a sequence header leaves the choice to each frame
_CONFIGURATION_BYTES = 4  # before the OBUs in mp4's av1C box and in Matroska's CodecPrivate


@dataclass(frozen=True)
class SequenceHeader:
    """The fields that decide how the headers of a sequence's frames are laid out."""

    screen_content_tools: int
    integer_motion_vectors: int
    order_hint_bits: int


def sequence_header(packet: bytes, extradata: bytes | None) -> SequenceHeader | None:
    """Return the header from a keyframe's packet or else from the stream's extradata; None if it can't be used."""
    try:
        for obus in (packet, (extradata or b"")[_CONFIGURATION_BYTES:]):
            start = 2 if obus[:1] == bytes([_DELIMITER]) else 0
            if obus[start : start + 1] == bytes([_SEQUENCE_HEADER]):
                begin, end = _content(obus, start + 1)
                return _read_sequence_header(obus[begin:end])
    except (IndexError, ValueError):  # cut off
        pass
    return None


def needed_bytes(packet: memoryview, sequence: SequenceHeader) -> int:
    """Return how many bytes of a packet matter to later pictures: a last frame that none refers to is left out.

    0 where that frame is all that the packet holds.
    """
    size, at, last = len(packet), 0, 0
    try:
        while at < size:
            last = at
            begin, at = _content(packet, at + 1)
    except IndexError:
        return size
    if at != size or packet[last] != _FRAME or size - begin < 8:
        return size
    header = int.from_bytes(packet[begin : begin + 8], "big")
    if header >> 60 != _SHOWN_INTER_FRAME:
        return size
    position = 6  # of the next bit, behind error_resilient_mode and disable_cdf_update
    tools = sequence.screen_content_tools
    if tools == _PER_FRAME:
        tools = header >> (63 - position) & 1
        position += 1
    if tools and sequence.integer_motion_vectors == _PER_FRAME:
        position += 1
    # frame_size_override_flag, order_hint, primary_ref_frame unless error_resilient_mode
    position += 1 + sequence.order_hint_bits + (0 if header >> 59 & 1 else 3)
    if header >> (56 - position) & 0xFF:  # refresh_frame_flags
        return size
    return 0 if last == 2 and packet[0] == _DELIMITER else last


def _content(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """Return where the content of an OBU begins and ends whose size (LEB128) stands at `at`."""
    size = shift = 0
    while True:
        byte = data[at]
        size |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return at, at + size


def _read_sequence_header(content: bytes) -> SequenceHeader | None:
    value, left = int.from_bytes(content, "big"), 8 * len(content)

    def read(count: int) -> int:
        nonlocal left
        left -= count
        return value >> left & ((1 << count) - 1)  # ValueError where the header is cut off

    read(3 + 1)  # seq_profile, still_picture
    reduced, timing, display_delay, operating_points = read(1), read(1), read(1), read(5)
    if reduced or timing or operating_points:
        return None
    read(12)  # operating_point_idc
    if read(5) > 7:
        read(1)  # seq_tier
    if display_delay and read(1):
        read(4)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    read(width_bits + height_bits)
    if read(1):  # frame_id_numbers_present_flag
        return None
    read(7)  # from use_128x128_superblock to enable_dual_filter
    order_hint = read(1)
    if order_hint:
        read(2)
    tools = _PER_FRAME if read(1) else read(1)
    integer = _PER_FRAME if not tools or read(1) else read(1)
    return SequenceHeader(tools, integer, read(3) + 1 if order_hint else 0)
