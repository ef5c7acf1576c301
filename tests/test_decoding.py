"""Window decoding: any length, piece by piece, crossfaded, never more than a window at a time."""

from __future__ import annotations

import pytest
import torch

from vidrd_core.sampling.windows import WindowDecoder, decode_windows, default_overlap, last_window_start


class Decoder:
    """Gives back the frame numbers of its latents, and remembers the windows it was given."""

    def __init__(self, blur: bool = False):
        self.windows: list[list[int]] = []
        self.blur = blur

    def __call__(self, latents: torch.Tensor) -> torch.Tensor:
        self.windows.append([int(n) for n in latents.flatten().tolist()])
        return latents + (latents.mean() if self.blur else 0)


def numbered(total: int) -> torch.Tensor:
    return torch.arange(total, dtype=torch.float64).reshape(1, 1, total, 1, 1)


def decode(
    latents: torch.Tensor, pieces: list[int], decoder: Decoder, window: int, overlap: int | None
) -> torch.Tensor:
    stream = WindowDecoder(decoder, window, overlap)
    out = []
    for piece in latents.split(pieces, dim=2):
        out += list(stream.push(piece))
    return torch.cat([*out, *stream.flush()], dim=2)


@pytest.mark.parametrize("overlap", [None, 0, 1, 3])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 8, 9, 23])
def test_every_frame_of_any_length_comes_out_once_in_order(total: int, overlap: int | None) -> None:
    decoder = Decoder()
    out = torch.cat(list(decode_windows(decoder, numbered(total), 4, overlap)), dim=2)
    torch.testing.assert_close(out, numbered(total))
    assert all(len(window) <= 4 for window in decoder.windows)
    assert all(len(window) == min(4, total) for window in decoder.windows)


@pytest.mark.parametrize("overlap", [None, 0, 1, 3])
@pytest.mark.parametrize("pieces", [[8, 8, 8], [1] * 24, [8, 5, 5, 6], [23, 1], [3, 21]])
def test_streaming_gives_the_frames_of_decoding_all_at_once(pieces: list[int], overlap: int | None) -> None:
    whole = torch.cat(list(decode_windows(Decoder(blur=True), numbered(24), 8, overlap)), dim=2)
    assert torch.equal(decode(numbered(24), pieces, Decoder(blur=True), 8, overlap), whole)


def test_overlapping_frames_fade_from_one_window_into_the_next() -> None:
    windows = iter([torch.zeros(1, 1, 4, 1, 1), torch.ones(1, 1, 4, 1, 1)])
    out = torch.cat(list(decode_windows(lambda _: next(windows), numbered(6), 4, 2)), dim=2)
    torch.testing.assert_close(out.flatten(), torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))


def test_a_stream_holds_no_more_than_two_windows() -> None:
    stream = WindowDecoder(Decoder(), 8)
    for _ in range(50):
        list(stream.push(numbered(8)))
        held = [t.shape[2] for t in (stream.latents, stream.history, stream.fading) if t is not None]
        assert sum(held) <= 2 * 8 + default_overlap(8)


@pytest.mark.parametrize("overlap", [0, 1, 2])
@pytest.mark.parametrize("first", range(1, 20))
def test_a_decoder_fed_from_the_last_windows_start_goes_on_as_if_fed_from_the_beginning(
    first: int, overlap: int
) -> None:
    total, window = 27, 6
    latents = numbered(total)
    whole = torch.cat(list(decode_windows(Decoder(blur=True), latents, window, overlap)), dim=2)
    start = last_window_start(first, window, overlap)
    again = decode(latents[:, :, start:], [first - start, total - first], Decoder(blur=True), window, overlap)
    assert torch.equal(again[:, :, first - start :], whole[:, :, first:])


@pytest.mark.parametrize(("window", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_impossible_windows_are_refused(window: int, overlap: int) -> None:
    with pytest.raises(ValueError, match=f"window is {window} and overlap {overlap}"):
        WindowDecoder(Decoder(), window, overlap)
