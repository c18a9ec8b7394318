"""Small videos made through PyAV, and what is in one, for tests of restoring videos."""

from fractions import Fraction

import av
import torch
from basicsr.archs import build_network
from pictures import photo

from diffir_sr.inference.videos.writing import Scheduling
from diffir_sr.weights_files import write_card_file


def write_small(file, *, scale=1, change=True):
    """A tiny network of scale 1, 2 or 4: an enlargement to nearest pixels, and with `change` a little beside it."""
    torch.manual_seed(0)
    arguments = dict(type="SRVGGNetCompact", num_feat=4, num_conv=1, upscale=scale)
    network = build_network(dict(arguments))
    with torch.no_grad():
        for parameter in network.body[-1].parameters():
            parameter *= 0.1 if change else 0
    write_card_file(network.state_dict(), dict(network=arguments, scale=scale), file)
    return str(file)


def pieces(count, height=32, width=48):
    """Frames (H, W, 3) of a view that moves over a real photograph."""
    return [photo(height, width, top=60 + 2 * number, left=150 + 3 * number) for number in range(count)]


def film(
    file,
    count=8,
    *,
    size=(32, 48),
    codec="libx264",
    form="yuv420p",
    stamps=None,
    time_base=Fraction(1, 1000),
    rate=10,
    options=None,
    set_up=None,
    others=None,
    container=None,
    frames=None,
):
    """Write a video of `pieces`; `stamps` are in units of `time_base`, `set_up(stream)` and `others(output)` add to it.

    `others` gives a list of (stream, packets) of further tracks.
    """
    scheduling = Scheduling()
    with av.open(str(file), "w", container_options=container or {}) as output:
        stream = output.add_stream(codec, rate=rate, options={"threads": "1", **(options or {})})
        (stream.height, stream.width), stream.pix_fmt = size, form
        stream.time_base = stream.codec_context.time_base = time_base
        if set_up:
            set_up(stream)
        further = others(output) if others else []
        for number, piece in enumerate(frames or pieces(count, *size)):
            frame = piece if isinstance(piece, av.VideoFrame) else av.VideoFrame.from_ndarray(piece, "rgb24")
            frame.pts = stamps[number] if stamps else number * int(1 / time_base / rate)
            frame.time_base = time_base
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        for track, packets in further:
            for packet in packets:
                packet.stream = track
                output.mux_one(packet)
    scheduling.restore()
    return str(file)


def times(file, *, track=0):
    """Seconds of every frame, exactly; AVI has only those of decoding, in the same order."""
    with av.open(str(file)) as container:
        if container.format.name == "avi":
            return [packet.dts * packet.time_base for packet in container.demux(video=track) if packet.size]
        return [frame.pts * frame.time_base for frame in container.decode(video=track)]


def shown(file):
    """All frames in RGB as swscale converts them by what they say of themselves."""
    with av.open(str(file)) as container:
        return [frame.to_ndarray(format="gbrp") for frame in container.decode(video=0)]


def said_of(file):
    """What the decoder says of the first frame: size, format and colour description."""
    with av.open(str(file)) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        return dict(
            codec=stream.codec_context.name,
            size=(frame.height, frame.width),
            form=frame.format.name,
            matrix=frame.colorspace,
            full=frame.color_range == 2,
            primaries=frame.color_primaries,
            transfer=frame.color_trc,
            aspect=stream.sample_aspect_ratio,
            rotation=frame.rotation,
        )


def tracks(file):
    """Type, codec, language and title of every track, and the packets of those beside the pictures."""
    with av.open(str(file)) as container:
        held = []
        for stream in container.streams:
            codec = stream.codec_context.name if stream.codec_context is not None else stream.name
            about = stream.metadata
            held.append((stream.type, codec, about.get("language"), about.get("title") or about.get("filename")))
        others = [stream for stream in container.streams if stream.type in ("audio", "subtitle")]
        packets = {}
        if others:
            for packet in container.demux(others):
                if packet.size:
                    seconds = packet.pts * packet.time_base
                    packets.setdefault(packet.stream.index, []).append((seconds, bytes(packet)))
        return held, packets
