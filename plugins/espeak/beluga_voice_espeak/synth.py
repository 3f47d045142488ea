"""
eSpeak NG as a plain function from text to audio: no framework, no event loop.

The library keeps one voice, one callback and one utterance per process, so `speak` holds one lock for all callers. That
is bearable because a second of speech takes about a millisecond to make, and because `on_audio` must not wait.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import importlib
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["SAMPLE_RATE_HZ", "SpokenWord", "Voice", "check_voice", "speak", "variants", "voices"]

SAMPLE_RATE_HZ: Final = 22_050
_BUFFER_MS: Final = 60

# Constants of speak_lib.h, eSpeak NG 1.52.
_OUTPUT_SYNCHRONOUS: Final = 2
_INITIALIZE_DONT_EXIT: Final = 0x8000  # else missing data ends the whole process
_CHARS_UTF8: Final = 1
_POSITION_CHARACTER: Final = 1
_RATE, _VOLUME, _PITCH = 1, 2, 3
_EVENT_END_OF_LIST, _EVENT_WORD, _EVENT_CLAUSE_END = 0, 1, 5

# Each becomes a space, so that positions in the text stay true. NUL would end the text, and half a surrogate pair has
# no UTF-8.
_UNSPEAKABLE: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of the engine: `language` ("en-us") or `name` ("English (America)") selects it."""

    language: str
    name: str


@dataclass(frozen=True, slots=True)
class SpokenWord:
    """A word as the text has it, punctuation included, and when it sounds, in ms from the first sample."""

    text: str
    start_ms: int
    end_ms: int


def speak(
    text: str,
    on_audio: Callable[[bytes], bool],
    *,
    voice: str = "en-us",
    rate_wpm: int = 175,
    pitch: int = 50,
    volume: int = 100,
    on_word: Callable[[SpokenWord], None] | None = None,
) -> bool:
    """
    Speak `text`, giving the audio away piece by piece as it is made.

    Only one text is spoken at a time in the process: `on_audio` must not wait, nor call `speak`. The same text does not
    give the same bytes twice: a few samples more or fewer.

    Args:
        text: What to say. Blank text gives no audio; control characters count as spaces; emoji are read by name.
        on_audio: Gets PCM, signed 16-bit little-endian mono, 22,050 Hz, about 60 ms or less; returning False stops it.
        voice: A language or voice name, with an optional variant: "en-us", "de", "en-us+f3".
        rate_wpm: Words a minute, 80 to 450.
        pitch: 0 to 100.
        volume: 0 to 200; 100 is normal, more may clip.
        on_word: Gets each word of the text, in order, once its end is known, which is before the audio after it goes to
            `on_audio`. A word without a sound of its own (a dash) lasts 0 ms; after a stop no more are reported.

    Returns:
        True when all was spoken, False when `on_audio` stopped it.

    Raises:
        ValueError: The voice is not known, or a number is out of its range.
        ModuleNotFoundError: `espeakng-loader` is not installed.
        RuntimeError: The library could not be loaded, or refused the text.
        BaseException: Whatever `on_audio` or `on_word` raised; the speech ends there.

    Example:
        >>> pcm = bytearray()
        >>> speak("Good morning.", lambda chunk: not pcm.extend(chunk))
        True
    """
    limits = (("rate_wpm", rate_wpm, 80, 450), ("pitch", pitch, 0, 100), ("volume", volume, 0, 200))
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; eSpeak NG takes {low} to {high}.")
    text = _UNSPEAKABLE.sub(" ", text)
    if not text.strip():
        return True
    utterance = _Utterance(text, on_audio, on_word)
    with _lock:
        library = _library()
        _set_voice(library, voice)
        for parameter, value in ((_RATE, rate_wpm), (_PITCH, pitch), (_VOLUME, volume)):
            library.espeak_SetParameter(parameter, value, 0)
        # Held in a local name until the call is over: ctypes does not keep it alive.
        callback = _CALLBACK(utterance.receive)
        library.espeak_SetSynthCallback(callback)
        encoded = text.encode() + b"\0"
        status = library.espeak_Synth(encoded, len(encoded), 0, _POSITION_CHARACTER, 0, _CHARS_UTF8, None, None)
        library.espeak_SetSynthCallback(_NO_CALLBACK)
    if utterance.error is not None:
        raise utterance.error
    if status != 0:
        raise RuntimeError(f"eSpeak NG refused {len(text)} characters of text with status {status}. Say it in parts.")
    if not utterance.stopped:
        utterance.report_rest()
    return not utterance.stopped


def voices() -> tuple[Voice, ...]:
    """
    List the voices, sorted by language.

    Raises:
        ModuleNotFoundError: `espeakng-loader` is not installed.
        RuntimeError: The library could not be loaded.
    """
    with _lock:
        return _list_voices(_library())


def variants() -> tuple[str, ...]:
    """
    List what may follow the "+" of a voice: "f3" makes "en-us+f3".

    Raises:
        ModuleNotFoundError: `espeakng-loader` is not installed.
        RuntimeError: The library could not be loaded.
    """
    with _lock:
        return _list_variants(_library())


@functools.cache
def check_voice(voice: str) -> None:
    """
    Make sure that `voice` can be spoken with. Loads the library if need be (32 ms).

    Raises:
        ValueError: The voice or its variant is not known; the message lists some that are.
        ModuleNotFoundError: `espeakng-loader` is not installed.
        RuntimeError: The library could not be loaded.
    """
    with _lock:
        _set_voice(_library(), voice)


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


class _VoiceStruct(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_void_p),  # a priority byte, then the language, then more of both
        ("identifier", ctypes.c_char_p),
        ("gender", ctypes.c_ubyte),
        ("age", ctypes.c_ubyte),
        ("variant", ctypes.c_ubyte),
        ("xx1", ctypes.c_ubyte),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))
_NO_CALLBACK = _CALLBACK()


class _Utterance:
    """What the library calls back into while one text is spoken."""

    def __init__(
        self, text: str, on_audio: Callable[[bytes], bool], on_word: Callable[[SpokenWord], None] | None
    ) -> None:
        self.stopped = False
        self.error: BaseException | None = None
        self._on_audio = on_audio
        self._sample_count = 0
        self._words = None if on_word is None else _WordTimes(text, on_word)

    def receive(self, samples: int | None, count: int, events: Any) -> int:
        """Take one buffer; 1 asks the library to stop."""
        try:
            if self._words is not None and not self.stopped:
                self._words.take(events)
            if samples and count and not self.stopped:
                self._sample_count += count
                self.stopped = not self._on_audio(ctypes.string_at(samples, count * 2))
        except BaseException as error:  # it cannot pass through C: speak() raises it
            self.error = error
            self.stopped = True
        return int(self.stopped)

    def report_rest(self) -> None:
        """Report the words at the end of the text for which the library had no event."""
        if self._words is not None:
            self._words.finish(self._sample_count * 1000 // SAMPLE_RATE_HZ)


class _WordTimes:
    """
    Turns the library's word events into the words of the text.

    The library reports what it reads, not what is written: "42" gives one event for "forty" and another for "two",
    whose position lies one character further, and so on until the next word. So an event counts only if it lies in a
    later word of the text than the one before, and a word lasts until the next one starts or its clause ends.
    """

    def __init__(self, text: str, on_word: Callable[[SpokenWord], None]) -> None:
        words = list(re.finditer(r"\S+", text))
        self._texts = [word.group() for word in words]
        self._starts = [word.start() for word in words]
        self._on_word = on_word
        self._reported = 0  # how many words of the text were handed out
        self._start_ms: int | None = None  # of the word being spoken, which is the next to be reported

    def take(self, events: Any) -> None:
        index = 0
        while events[index].type != _EVENT_END_OF_LIST:
            event = events[index]
            if event.type == _EVENT_WORD:
                word = bisect.bisect_right(self._starts, event.text_position - 1) - 1
                speaking = self._reported - (self._start_ms is None)
                if word > speaking:
                    self._report(word, event.audio_position)
                    self._start_ms = event.audio_position
            elif event.type == _EVENT_CLAUSE_END and self._start_ms is not None:
                self._report(self._reported + 1, event.audio_position)
            index += 1

    def finish(self, end_ms: int) -> None:
        self._report(len(self._texts), end_ms)

    def _report(self, until: int, at_ms: int) -> None:
        """Hand out the words before number `until`: the one being spoken ends now, those passed over last no time."""
        while self._reported < until:
            start_ms = at_ms if self._start_ms is None else self._start_ms
            self._start_ms = None
            self._on_word(SpokenWord(self._texts[self._reported], start_ms, at_ms))
            self._reported += 1


@functools.cache
def _library() -> Any:
    try:
        loader: Any = importlib.import_module("espeakng_loader")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The package espeakng-loader is not installed. Run: pip install espeakng-loader==0.2.4", name=error.name
        ) from error
    path = loader.get_library_path()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise RuntimeError(
            f"Could not load eSpeak NG from {path}: {error}. Reinstall espeakng-loader, or use another voice here."
        ) from error
    library.espeak_Synth.argtypes = [
        ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p,
        ctypes.c_void_p,
    ]  # fmt: skip
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_ListVoices.argtypes = [ctypes.POINTER(_VoiceStruct)]
    library.espeak_ListVoices.restype = ctypes.POINTER(ctypes.POINTER(_VoiceStruct))
    data_path = loader.get_data_path()
    rate_hz = library.espeak_Initialize(_OUTPUT_SYNCHRONOUS, _BUFFER_MS, data_path.encode(), _INITIALIZE_DONT_EXIT)
    if rate_hz != SAMPLE_RATE_HZ:
        raise RuntimeError(
            f"eSpeak NG started with {rate_hz} Hz instead of {SAMPLE_RATE_HZ}: it found no voice data in {data_path} "
            "(a path over 150 characters is too long for it). Reinstall espeakng-loader."
        )
    return library


def _set_voice(library: Any, voice: str) -> None:
    base, plus, variant = voice.partition("+")
    # The library takes an unknown variant in silence and speaks with the plain voice.
    if plus and variant not in _list_variants(library):
        some = ", ".join(_list_variants(library)[:12])
        raise ValueError(f"eSpeak NG has no variant {variant!r} for voice {base!r}. Some it has: {some}.")
    known = _list_voices(library)
    # The library does not find every voice by the language it lists it under ("en-gb"), but each by its name.
    names = [base, *(each.name for each in known if each.language.lower() == base.lower())]
    wanted = [f"{name}{plus}{variant}".encode("utf-8", "replace") for name in names]
    if "\0" in voice or all(library.espeak_SetVoiceByName(name) != 0 for name in wanted):
        have = sorted({each.language for each in known})
        near = [language for language in have if language[:2] == base[:2].lower()] or have[:: max(1, len(have) // 12)]
        raise ValueError(
            f"eSpeak NG has no voice {voice!r}. Some of its {len(have)}: {', '.join(near)}. "
            "beluga_voice_espeak.synth.voices() lists all."
        )


@functools.cache
def _list_voices(library: Any) -> tuple[Voice, ...]:
    return tuple(Voice(language, name) for language, name, _ in _read_voices(library, None))


@functools.cache
def _list_variants(library: Any) -> tuple[str, ...]:
    language = ctypes.create_string_buffer(b"variant")
    only = _VoiceStruct(languages=ctypes.cast(language, ctypes.c_void_p))
    return tuple(sorted(path.rpartition("/")[2] for _, _, path in _read_voices(library, ctypes.byref(only))))


def _read_voices(library: Any, only: Any) -> list[tuple[str, str, str]]:
    found = library.espeak_ListVoices(only)
    rows = []
    index = 0
    while found[index]:
        voice = found[index].contents
        language = ctypes.string_at(voice.languages + 1)
        rows.append((language.decode(), voice.name.decode(), voice.identifier.decode()))
        index += 1
    return sorted(rows)
