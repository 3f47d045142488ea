"""Configuration files: what they make, and that whatever is wrong in one is told with file, line and remedy."""

import doctest
import json
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import beluga_voice
from beluga_voice import _tables, _toml, config, imports
from beluga_voice.errors import BelugaVoiceError, ChainError, ConfigError, MissingKeyError, OptionError

APP = """
from beluga_voice import stt, turn, s2s
from beluga_voice.agent import Agent
from beluga_voice.chain import each_frame
from beluga_voice.errors import MissingKeyError
from beluga_voice.frames import Transcript
from beluga_voice.builtin.silence_turn import SilenceTurn
from beluga_voice.turn import TurnCapabilities

class Ears(stt.STT):
    Options = stt.Options
    def __init__(self, **options):
        self.options = stt.Options(**options)
    async def transcribe(self, audio):
        return Transcript("hello")

class TurnEars(Ears):
    capabilities = stt.STTCapabilities(ends_turns=True, continuous=True)

    def stream(self):
        return super().stream()

class Keyless(Ears):
    def __init__(self):
        raise MissingKeyError("no key; set KEYLESS_API_KEY, or give api_key", env_var="KEYLESS_API_KEY")

class Reader(SilenceTurn):
    capabilities = TurnCapabilities(reads_words=True)

class Model(s2s.S2S):
    async def connect(self, history=()):
        raise NotImplementedError

class Support(Agent):
    def __init__(self, tone="kind"):
        self.tone = tone
    async def reply(self, text, history, session):
        return self.tone

def voice(voice=""):
    from beluga_voice import tts
    return tts.new("tone", voice=voice)

def explode(**options):
    raise ValueError(f"cannot use {options}")

@each_frame
def first(frame):
    return None

@each_frame
def second(frame):
    return None

async def reply(text, history):
    return text

def blocking(text, history):
    return text

async def lonely(text):
    return text

TEXT = "not a provider"
"""
PARTS = {
    "vad": 'provider = "energy"',
    "turn": 'provider = "silence"',
    "stt": 'provider = "config_app:Ears"',
    "agent": 'provider = "echo"',
    "tts": 'provider = "tone"',
}


@pytest.fixture
def file(tmp_path):
    """Writes a configuration beside the module `config_app`; kinds that `text` leaves out come last, built-in ones."""
    (tmp_path / "config_app.py").write_text(APP)
    sys.modules.pop("config_app", None)

    def write(text, **parts):
        path = tmp_path / "call.toml"
        rest = {kind: part for kind, part in (PARTS | parts).items() if part and f"[{kind}]" not in text}
        path.write_text(text + "".join(f"\n[{kind}]\n{part}\n" for kind, part in rest.items()))
        return path

    yield write
    sys.modules.pop("config_app", None)


def told(path, kind=ConfigError):
    """The message of what loading `path` raises, the folder left out."""
    with pytest.raises(kind) as caught:
        config.load(path)
    return str(caught.value).replace(f"{path.parent}{os.sep}", "")


# --- what a file makes -----------------------------------------------------------------------------------------------


def test_a_file_makes_chain_session_and_limits(file):
    made = config.load(
        file("[session]\ngreeting = 'Hi'\nmax_sessions = 7\nidle_timeout_ms = 900\n[barge_in]\nmin_speech_ms = 150\n")
    )
    assert [stage.kind for stage in made.chain.stages] == ["vad", "turn", "stt", "agent", "tts"]
    assert (made.session.greeting, made.session.idle_timeout_ms, made.session.max_turn_ms) == ("Hi", 900.0, 30_000.0)
    assert made.session.barge_in.min_speech_ms == 150.0
    assert made.manager.max_sessions == 7
    assert made.names == {
        "vad": "energy",
        "turn": "silence",
        "stt": "config_app:Ears",
        "agent": "echo",
        "tts": "tone",
    }


def test_options_reach_the_engines(file):
    made = config.load(file("[vad]\nprovider = 'energy'\nthreshold = 0.7\n[turn]\nsilence_ms = 420\n"))
    detector, pause = made.chain.engines[:2]
    assert (detector.options.threshold, pause.options.silence_ms) == (0.7, 420.0)


def test_a_distribution_can_be_named_before_the_provider(file):
    made = config.load(file("[agent]\nprovider = 'beluga-voice:echo'\n"))
    assert made.chain.stage("agent").name == "echo"


def test_further_tables_of_a_kind_stand_by_in_their_order(file):
    ears = "".join(f"[[stt]]\nprovider = 'config_app:Ears'\nlanguage = '{one}'\n" for one in ("en", "de", "fr"))
    voices = "".join(f"[[tts]]\nprovider = 'tone'\nvoice = '{one}'\n" for one in ("low", "high"))
    agents = "[[agent]]\nprovider = 'config_app:Support'\n[[agent]]\nprovider = 'config_app:reply'\n"
    made = config.load(file(ears + voices + agents, stt="", tts="", agent=""))
    recogniser, agent, voice = (made.chain.stage(kind).engine for kind in ("stt", "agent", "tts"))
    assert [engine.options.language for engine in recogniser.engines] == ["en", "de", "fr"]
    assert [engine.options.voice for engine in voice.engines] == ["low", "high"]
    assert [engine.name for engine in agent.engines] == ["Support", "reply"]
    assert (made.names["stt"], made.names["tts"]) == ("config_app:Ears", "tone")


def test_speech_to_speech_models_stand_by_for_one_another(file):
    text = "[[s2s]]\nprovider = 'config_app:Model'\n" * 2
    made = config.load(file(text, **dict.fromkeys(PARTS, "")))
    assert len(made.chain.stage("s2s").engine.engines) == 2


def test_the_resilience_table_holds_for_one_engine_as_for_several(file):
    table = "[resilience]\nretries = 3\nfirst_audio_timeout_ms = 900\n"
    two = "[[tts]]\nprovider = 'tone'\n[[tts]]\nprovider = 'tone'\n"
    for made in (config.load(file(table)), config.load(file(table + two, tts=""))):
        assert made.resilience.retries == 3
        for kind in ("stt", "agent", "tts"):
            assert made.chain.stage(kind).engine.resilience == made.resilience
    assert not hasattr(config.load(file("")).chain.stage("tts").engine, "resilience")


def test_an_agent_that_is_a_function_is_left_as_it_is(file):
    made = config.load(file("[resilience]\nretries = 3\n[agent]\nprovider = 'config_app:reply'\n", agent=""))
    assert made.chain.stage("agent").engine is None


STAND_BYS = {
    "option": ("provider = 'config_app:Ears'\nlangage = 'de'", 5, ["has no option 'langage'"]),
    "not installed": ("provider = 'nowhere'", 4, ["'nowhere'", "stt"]),
    "no key": ("provider = 'config_app:Keyless'", 4, ["KEYLESS_API_KEY", "api_key"]),
    "no provider": ("language = 'de'", 3, ["has no provider"]),
    "ends turns": ("provider = 'config_app:TurnEars'", 3, ["ends turns by itself"]),
}


@pytest.mark.parametrize("case", STAND_BYS)
def test_a_stand_by_is_checked_like_the_first(case, file):
    text, line, fragments = STAND_BYS[case]
    message = told(file(f"[[stt]]\nprovider = 'config_app:Ears'\n[[stt]]\n{text}\n", stt=""), (ConfigError, MissingKeyError))
    assert message.startswith(f"call.toml:{line}: ")
    for fragment in fragments:
        assert fragment in message


def test_processors_stand_where_they_say_in_the_order_of_the_file(file):
    made = config.load(
        file(
            "[[processor]]\nprovider = 'config_app:second'\nbefore = 'config_app:first'\n"
            "[[processor]]\nprovider = 'config_app:first'\nafter = 'vad'\n"
            "[[processor]]\nprovider = 'gain'\ndb = 3\nafter = 'vad'\n"
        )
    )
    assert [stage.name for stage in made.chain.stages[:5]] == ["energy", "second", "first", "gain", "silence"]


def test_a_speech_to_speech_model_stands_for_what_is_left_out(file):
    none = dict.fromkeys(PARTS, "")
    alone = config.load(file("[s2s]\nprovider = 'config_app:Model'\n", **none))
    heard = config.load(file("[s2s]\nprovider = 'config_app:Model'\n", **none | {"vad": PARTS["vad"]}))
    assert [stage.kind for stage in alone.chain.stages] == ["s2s"]
    assert [stage.kind for stage in heard.chain.stages] == ["vad", "s2s"]


def test_no_turn_detector_is_added_to_a_recogniser_that_ends_turns(file):
    made = config.load(file("[stt]\nprovider = 'config_app:TurnEars'\n", turn=""))
    assert [stage.kind for stage in made.chain.stages] == ["vad", "stt", "agent", "tts"]


def test_a_turn_detector_that_reads_words_stands_behind_the_recogniser(file):
    made = config.load(file("[turn]\nprovider = 'config_app:Reader'\n"))
    assert [stage.kind for stage in made.chain.stages] == ["vad", "stt", "turn", "agent", "tts"]


def test_one_engine_can_be_had_without_the_others(file):
    path = file("[tts]\nprovider = 'tone'\nvoice = 'low'\n", stt='provider = "nowhere"')
    assert config.engine("tts", path).options.voice == "low"


# --- the user's own --------------------------------------------------------------------------------------------------


def test_an_agent_beside_the_file_is_found_and_the_search_path_is_left_alone(file):
    before = list(sys.path)
    made = config.load(file("[agent]\nprovider = 'config_app:reply'\n"))
    assert made.chain.stage("agent").name == "reply"
    assert sys.path == before


def test_an_agent_in_the_current_folder_is_found(file, tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    (here / "config_here.py").write_text("async def reply(text, history):\n    return text\n")
    monkeypatch.chdir(here)
    assert config.load(file("[agent]\nprovider = 'config_here:reply'\n")).chain.stage("agent").name == "reply"


def test_a_class_is_made_with_the_options_of_its_table(file):
    made = config.load(file("[agent]\nprovider = 'config_app:Support'\ntone = 'curt'\n"))
    assert made.chain.stage("agent").engine.tone == "curt"


def test_a_factory_is_called_with_the_options_of_its_table(file):
    made = config.load(file("[tts]\nprovider = 'config_app:voice'\nvoice = 'low'\n"))
    assert made.chain.stage("tts").engine.options.voice == "low"


def test_a_module_of_that_name_imported_from_elsewhere_is_refused(file, tmp_path):
    config.load(file(""))
    other = tmp_path / "other"
    other.mkdir()
    (other / "config_app.py").write_text(APP)
    (other / "call.toml").write_text("[agent]\nprovider = 'config_app:reply'\n[vad]\nprovider = 'energy'\n")
    text = (other / "call.toml").read_text() + "[stt]\nprovider = 'config_app:Ears'\n[tts]\nprovider = 'tone'\n"
    (other / "call.toml").write_text(text)
    assert "was imported before it; rename one" in told(other / "call.toml")


# --- what is wrong with a file ---------------------------------------------------------------------------------------

WRONG = {
    "table": ("[agnet]", 1, ["[agnet]", "Did you mean [agent]?", "processor"]),
    "outside": ("\nmax_sessions = 3", 2, ["'max_sessions' stands outside any table"]),
    "not a table": ("vad = 3", 1, ["'vad'", "write [vad]"]),
    "list of one kind": ("[[vad]]\nprovider = 'energy'", 1, ["[[vad]]", "write [vad]"]),
    "option": ("[turn]\n# pause\nsilense_ms = 3", 3, ["'silense_ms'", "did you mean 'silence_ms'?", "max_hold_ms"]),
    "option type": ("[turn]\nsilence_ms = 'long'", 2, ["'silence_ms'", "'long'", "float"]),
    "option range": ("[vad]\nprovider = 'energy'\nthreshold = 7", 3, ["'threshold' is 7", "0.01 to 0.99"]),
    "huge number": ("[turn]\nsilence_ms = 1" + "0" * 400, None, ["turn"]),
    "huge limit": ("[session]\nmax_turn_ms = 1" + "0" * 400, None, ["[session]"]),
    "session key": ("[session]\nagent_timeout_m = 3", 2, ["Did you mean 'agent_timeout_ms'?", "max_sessions"]),
    "session type": ("[session]\n\nmax_sessions = 'x'", 3, ["'max_sessions'", "expected int"]),
    "session range": ("[session]\nmax_sessions = 0", 2, ["'max_sessions' is 0", "at least 1"]),
    "barge_in in session": ("[session.barge_in]\nmin_speech_ms = 3", 1, ["write [barge_in]"]),
    "resilience key": ("[resilience]\nretrys = 3", 2, ["did you mean 'retries'?"]),
    "resilience range": ("[resilience]\nfailure_share = 3", 2, ["'failure_share' is 3"]),
    "resilience window": ("[resilience]\nwindow = 3", 1, ["window", "minimum_calls is 5"]),
    "barge_in key": ("[barge_in]\nmin_speach_ms = 3", 2, ["did you mean 'min_speech_ms'?"]),
    "provider": ("[tts]\nprovider = 'tne'", 2, ["'tne'", "Did you mean 'tone'?"]),
    "provider type": ("[tts]\nprovider = 3", 2, ["[tts] provider", "type int"]),
    "provider empty": ("[tts]\nprovider = ''", 2, ["[tts] provider is empty"]),
    "no provider": ("[s2s]", 1, ["[s2s] has no provider"]),
    "beside s2s": ("[s2s]\nprovider = 'x'\n[tts]", 3, ["cannot stand beside [s2s]"]),
    "no place": ("[[processor]]\nprovider = 'gain'", 1, ["neither `before` nor `after`"]),
    "two places": ("[[processor]]\nprovider = 'gain'\nbefore = 'vad'\nafter = 'vad'", 1, ["both"]),
    "unknown place": ("[[processor]]\nprovider = 'gain'\nbefore = 'vda'", 3, ["'vda'", "Did you mean 'vad'?"]),
    "place type": ("[[processor]]\nprovider = 'gain'\nbefore = 3", 3, ["type int"]),
    "own place": ("[[processor]]\nprovider = 'gain'\nbefore = 'gain'", 3, ["stands before 'gain'", "vad, turn"]),
    "wrong side": ("[[processor]]\nprovider = 'gain'\nafter = 'tts'", 1, ["(gain) listens to the caller"]),
    "no module": ("[agent]\nprovider = 'config_ap:reply'", 2, ["'config_ap'", "Did you mean 'config_app'?"]),
    "dot for colon": ("[agent]\nprovider = 'config_app.reply'", 2, ["no agent", 'written "config_app:reply"']),
    "no attribute": ("[agent]\nprovider = 'config_app:repl'", 2, ["'repl'", "did you mean 'reply'?"]),
    "no name": ("[agent]\nprovider = 'config_app:'", 2, ['"module:attribute"']),
    "sync agent": ("[agent]\nprovider = 'config_app:blocking'", 2, ["not async", "async def", "to_thread"]),
    "agent arguments": ("[agent]\nprovider = 'config_app:lonely'", 2, ["(text, history)"]),
    "agent options": ("[agent]\nprovider = 'config_app:reply'\nx = 1", 3, ["takes no options", "'x'"]),
    "class options": ("[agent]\nprovider = 'config_app:Support'\nx = 1", 3, ["argument 'x'"]),
    "not an agent": ("[agent]\nprovider = 'config_app:TEXT'", 2, ["type str", "async function"]),
    "not a voice": ("[tts]\nprovider = 'config_app:Ears'", 2, ["type Ears", "tts.TTS"]),
    "function as stt": ("[stt]\nprovider = 'config_app:reply'", 2, ["type function", "stt.STT"]),
    "constructor": ("[tts]\nprovider = 'config_app:explode'", 2, ["[tts]", "ValueError: cannot use"]),
    "reference": ("[tts]\nvoice = '${'", 2, ["[tts] voice", "$${"]),
    "syntax": ("[tts]\nvoice = ", 2, ["not TOML"]),
    "twice": ("[stt]\nprovider = 'config_app:Ears'\n[stt]", 3, ["not TOML", "Join the two", "s2s", "[[stt]]"]),
    "one and many": ("[stt]\nprovider = 'config_app:Ears'\n[[stt]]", 3, ["not TOML", "[[stt]]", "the first too"]),
    "end": ("[tts]\n\nvoice = [", 3, ["not TOML"]),
}
ALONE = ("syntax", "end", "twice", "one and many", "not a table", "no provider", "beside s2s")


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told_with_its_line_and_the_remedy(case, file):
    text, line, fragments = WRONG[case]
    parts = dict.fromkeys(PARTS, "") if case in ALONE else {}
    message = told(file(text, **parts))
    assert message.startswith(f"call.toml:{line}: " if line else "call.toml")
    for fragment in fragments:
        assert fragment in message
    assert "\n" not in message


def test_lines_are_right_in_a_file_with_windows_line_ends_and_a_byte_order_mark(file):
    path = file("")
    path.write_bytes(b"\xef\xbb\xbf" + b"# a comment\r\n[turn]\r\n\r\nsilense_ms = 3\r\n")
    assert told(path, OptionError).startswith("call.toml:4: ")


def test_a_chain_in_a_wrong_order_is_a_chain_error(file):
    path = file("[[processor]]\nprovider = 'gain'\nafter = 'agent'\n")
    with pytest.raises(ChainError) as caught:
        config.load(path)
    assert caught.value.stage == "gain"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no such file"),
        ("directory", "is a directory"),
        (b"[tts]\nvoice = '\xff'", "not UTF-8"),
        (b"#" * 1_000_001, "larger than"),
        (b"a = " + b"[" * 100_000, "not TOML"),
        (b"a = " + b"9" * 5_000, "not TOML"),
        (b"a = \x00", "not TOML"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_clear_line(content, words, tmp_path):
    path = tmp_path / "call.toml"
    if content == "directory":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    message = told(path)
    assert message.startswith("call.toml")
    assert words in message
    assert "\n" not in message


# --- the environment -------------------------------------------------------------------------------------------------


def test_a_variable_is_read_from_the_environment_anywhere_in_a_string(file, monkeypatch):
    monkeypatch.setenv("CONFIG_NAME", "Ann")
    made = config.load(file("[session]\ngreeting = 'I am ${CONFIG_NAME}, not $${CONFIG_NAME} for $5.'\n"))
    assert made.session.greeting == "I am Ann, not ${CONFIG_NAME} for $5."


def test_a_variable_that_is_not_set_is_named_with_file_line_and_key(file, monkeypatch):
    monkeypatch.delenv("CONFIG_KEY", raising=False)
    path = file("[session]\n\n[tts]\nprovider = 'tone'\nvoice = '${CONFIG_KEY}'\n")
    with pytest.raises(MissingKeyError) as caught:
        config.load(path)
    assert caught.value.env_var == "CONFIG_KEY"
    assert told(path).startswith("call.toml:5: [tts] voice needs the environment variable CONFIG_KEY")


@pytest.mark.parametrize(
    "text",
    [
        "[tts]\nprovider = 'tone'\nword_ms = '${CONFIG_KEY}'",
        "[tts]\nprovider = 'config_app:explode'\nkey = 'Bearer ${CONFIG_KEY}'",
        "[session]\nmax_sessions = '${CONFIG_KEY}'",
        "[tts]\nprovider = '${CONFIG_KEY}'",
        "[agent]\nprovider = 'config_app:${CONFIG_KEY}'",
        "[[processor]]\nprovider = 'gain'\nafter = '${CONFIG_KEY}'",
    ],
)
def test_what_came_from_the_environment_is_never_in_a_message(text, file, monkeypatch):
    secret = "sk'secret\\123"
    monkeypatch.setenv("CONFIG_KEY", secret)
    path = file(text)
    with pytest.raises(BelugaVoiceError) as caught:
        config.load(path)
    shown = f"{caught.value} {caught.value.__cause__}"
    assert "secret" not in shown
    assert "${CONFIG_KEY}" in shown


# --- whatever is in the file -----------------------------------------------------------------------------------------

KNOWN = (*_tables.TABLES, "provider", "voice", "before", "after", "silence_ms", "greeting", "max_sessions", "db")
names = st.sampled_from(KNOWN) | st.text(max_size=6)
plain = (
    st.text(max_size=8)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.sampled_from(["energy", "tone", "echo", "silence", "gain", "vad", "json:loads", "a:b", "${", "${NO_SUCH_KEY}"])
)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(names, plain, max_size=3)
tables = st.dictionaries(names, values | st.dictionaries(names, values, max_size=4), max_size=5)


def written(value):
    """A value as TOML, all in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, float):
        return {"inf": "inf", "-inf": "-inf", "nan": "nan"}.get(str(value), repr(value))
    return json.dumps(value)


def load_or_refuse(text):
    """Nothing but a ConfigError comes out, whose message begins with the file's name."""
    try:
        config.loads(text, "any.toml")
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message.startswith("any.toml")


@settings(max_examples=300, deadline=None)
@given(tables)
def test_any_tables_are_taken_or_refused_in_words(content):
    load_or_refuse("".join(f"{json.dumps(key)} = {written(value)}\n" for key, value in content.items()))


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("[]={}\"'#.,\n\r\t $\\abtsv09-_") | st.characters(), max_size=60))
def test_any_text_is_taken_or_refused_in_words(text):
    load_or_refuse(text)


keys = st.text(alphabet="abc", min_size=1, max_size=3)
bodies = st.sampled_from(["1", '"one"', '"""\ntwo\nlines = 3\n"""', "[\n 1,\n # [x]\n 2\n]", "'''\n[a]\n'''", "{ a = 1 }"])


@given(st.lists(st.tuples(keys, bodies, st.integers(0, 2)), max_size=8, unique_by=lambda one: one[0]))
def test_every_key_is_found_at_the_line_where_it_is_written(statements):
    lines, expected = ["[table]"], {}
    for key, body, blank in statements:
        lines += ["# key = 3", ""][:blank]
        expected[key] = len(lines) + 1
        lines += f"{key} = {body}".split("\n")
    file = _toml.TomlFile("\n".join(lines), "f")
    assert {key: file.where("table", key) for key in expected} == {key: f"f:{line}" for key, line in expected.items()}


@pytest.mark.parametrize("module", [config, _toml, imports])
def test_the_examples_of_the_docstrings_run(module):
    assert doctest.testmod(module).failed == 0
    assert Path(beluga_voice.__file__).parent in Path(module.__file__).parents


def test_the_tables_of_a_file_are_told(tmp_path):
    """For whoever uses one of them alone."""
    path = tmp_path / "call.toml"
    path.write_text('[server]\npage = false\n[session]\ngreeting = "Hello."\n[tts]\nprovider = "tone"\n', "utf-8")
    assert config.tables(path, but="server") == ["[session]", "[tts]"]


def test_this_package_may_be_named_beside_a_copy_of_it(tmp_path):
    """Who stands in a copy of the repository gets what is installed, and no complaint."""
    (tmp_path / "beluga_voice").mkdir()
    (tmp_path / "beluga_voice" / "__init__.py").write_text("raise RuntimeError('not this one')")
    file = tmp_path / "call.toml"
    file.write_text(
        '[vad]\nprovider = "energy"\n[stt]\nprovider = "beluga_voice.testing:ScriptedSTT"\n'
        '[agent]\nprovider = "echo"\n[tts]\nprovider = "tone"\n'
    )
    assert config.load(file).names["stt"] == "beluga_voice.testing:ScriptedSTT"
