"""Deltas add up to the whole decode, cut at the first stop string, whatever the grouping.

Every property is checked against `whole_answer`, which sees all tokens at once.
"""

from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.chat import MalformedCallError, ToolCall, parse_call
from paceline.errors import ConfigError
from paceline.output import Delta, OutputText
from small_tokenizer import SENTENCES, small_document, small_tokenizer

TOKENIZER = small_tokenizer()
CONTROL = TOKENIZER.control
VOCAB = small_document()["model"]["vocab"]
CHARACTERS = "ab \n<é☃\U0001f600"


def spelled(token_id):
    if token_id in TOKENIZER.control_ids:
        return TOKENIZER.token_text(token_id).encode()
    return TOKENIZER.token_bytes(token_id)


def byte_ids(data):
    return [VOCAB[f"<0x{byte:02X}>"] for byte in data]


def call_ids(text):
    """A call in which a straight quote stands for the quote token."""
    ids = [CONTROL.tool_call_start]
    for index, part in enumerate(text.split('"')):
        ids += [CONTROL.string_quote] * bool(index) + TOKENIZER.encode_text(part)
    return [*ids, CONTROL.tool_call_end]


def cut(text, stops):
    """The text before the stop string that is complete first, and whether there was one."""
    ends = [(text.index(stop) + len(stop), text.index(stop)) for stop in set(stops) if stop in text]
    return (text[: min(ends)[1]], True) if ends else (text, False)


def sections(ids):
    """The answer cut at its borders: (kind, bytes), a call that can be read as (kind, call)."""
    kind, data, rest = "text", b"", list(ids)
    while rest:
        token = rest.pop(0)
        if token == CONTROL.tool_call_start:
            yield kind, data
            kind, data = "text", b""
            borders = (CONTROL.tool_call_end, CONTROL.tool_call_start, CONTROL.channel_start)
            end = next((i for i, other in enumerate(rest) if other in borders), len(rest))
            closed = rest[end : end + 1] == [CONTROL.tool_call_end]
            body, rest = rest[:end], rest[end + closed :]
            try:
                if not closed:
                    raise MalformedCallError
                yield "tool_call", parse_call(body, TOKENIZER)
            except MalformedCallError:
                data = b"".join(map(spelled, [token, *body, *[CONTROL.tool_call_end] * closed]))
        elif token == CONTROL.channel_start or (token == CONTROL.channel_end and kind != "text"):
            yield kind, data
            kind, data = ("reasoning" if token == CONTROL.channel_start else "text"), b""
        else:
            data += TOKENIZER.token_bytes(token)
    yield kind, data


def whole_answer(ids, stops):
    """(text, reasoning, calls, stopped) of all tokens at once."""
    text, reasoning, calls = "", "", []
    for kind, data in sections(ids):
        if kind == "tool_call":
            calls.append(data)
        elif kind == "reasoning":
            thought = data.decode(errors="replace")
            reasoning += "" if thought == "thought" else thought.removeprefix("thought\n")
        else:
            stretch, stopped = cut(data.decode(errors="replace"), stops)
            text += stretch
            if stopped:
                return text, reasoning, calls, True
    return text, reasoning, calls, False


def pushed(ids, *, flags=None, finish=True, **options):
    output = OutputText(TOKENIZER, **options)
    deltas = []
    for index, token in enumerate(ids):
        deltas += output.push(token, drafted=flags[index] if flags else False)
    return output, deltas + (output.finish() if finish else [])


def joined(deltas, kind="text"):
    return "".join(delta.text for delta in deltas if delta.kind == kind)


def in_runs(characters):
    """[(character, flag), ...] as [(text, flag), ...] with equal flags joined."""
    return [
        ("".join(character for character, _ in run), flag)
        for flag, run in groupby(characters, key=lambda pair: pair[1])
    ]


texts = st.text(CHARACTERS, max_size=8)
text_ids = texts.map(TOKENIZER.encode_text)
torn_ids = st.binary(max_size=5).map(byte_ids)
any_ids = st.lists(st.integers(0, TOKENIZER.vocab_size + 5), max_size=6)
stop_strings = st.lists(st.text("ab \n<é", min_size=1, max_size=4), max_size=3)
call_texts = st.sampled_from(
    ["call:f{}", 'call:f{a:"b<é☃"}', "call:f{", "bad", "", 'call:f{"}', "call:f{a:[1,{}]}"]
)
borders = st.sampled_from(
    [
        [CONTROL.channel_start],
        [CONTROL.channel_end],
        [CONTROL.tool_call_start],
        [CONTROL.tool_call_end],
        [CONTROL.pad],
        [CONTROL.string_quote],
        [CONTROL.channel_start, *TOKENIZER.encode_text("thought\n")],
        [CONTROL.channel_start, *TOKENIZER.encode_text("thought"), CONTROL.channel_end],
        [CONTROL.channel_start, *TOKENIZER.encode_text("other\n")],
    ]
)
parts = text_ids | torn_ids | any_ids | borders | call_texts.map(call_ids)
answers = st.lists(parts, max_size=8).map(lambda chunks: [i for chunk in chunks for i in chunk])
raw_answers = st.lists(text_ids | torn_ids | any_ids, max_size=8).map(
    lambda chunks: [i for chunk in chunks for i in chunk]
)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(answers, stop_strings)
def test_any_tokens_add_up_to_the_whole_answer(ids, stops):
    output, deltas = pushed(ids, stop=stops)
    text, reasoning, calls, stopped = whole_answer(ids, stops)
    assert (joined(deltas), joined(deltas, "reasoning")) == (text, reasoning)
    assert [delta.tool_call for delta in deltas if delta.kind == "tool_call"] == calls
    assert (output.text, output.reasoning, output.tool_calls) == (text, reasoning, calls)
    assert (output.stopped, output.num_tool_calls) == (stopped, len(calls))
    assert all(delta.text for delta in deltas)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(raw_answers, stop_strings)
def test_a_raw_answer_is_the_decode_cut_at_the_first_stop_string(ids, stops):
    output, deltas = pushed(ids, stop=stops, raw=True)
    assert (joined(deltas), output.stopped) == cut(TOKENIZER.decode(ids), stops)
    assert {delta.kind for delta in deltas} <= {"text"}


@settings(derandomize=True, deadline=None, max_examples=400)
@given(texts, stop_strings)
def test_exactly_the_possible_start_of_a_stop_string_and_half_characters_are_held(text, stops):
    """Byte by byte: what is out is what is certain, not a character more and not one less."""
    data = text.encode()
    output = OutputText(TOKENIZER, stop=stops, raw=True)
    for length, token in enumerate(byte_ids(data), start=1):
        output.push(token, drafted=False)
        seen = data[:length].decode(errors="ignore")
        certain, stopped = cut(seen, stops)
        if not stopped:
            starts = [
                size for stop in stops for size in range(len(stop)) if seen.endswith(stop[:size])
            ]
            certain = seen[: len(seen) - max(starts, default=0)]
        assert (output.text, output.stopped) == (certain, stopped)


@settings(derandomize=True, deadline=None, max_examples=400)
@given(texts, stop_strings, st.data())
def test_each_character_has_the_flag_of_the_token_that_completed_it(text, stops, data):
    ids = byte_ids(text.encode())
    flags = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    _, deltas = pushed(ids, flags=flags, stop=stops, raw=True)
    last_bytes = [len(text[: end + 1].encode()) - 1 for end in range(len(text))]
    flagged = [(character, flags[at]) for character, at in zip(text, last_bytes, strict=True)]
    shown = [(character, delta.drafted) for delta in deltas for character in delta.text]
    assert shown == flagged[: len(cut(text, stops)[0])]


def test_held_text_keeps_its_flags_when_it_is_released():
    output = OutputText(TOKENIZER, stop=["aab!"], raw=True)
    assert output.push(*byte_ids(b"a"), drafted=True) == []
    assert output.push(*byte_ids(b"a"), drafted=False) == []
    assert output.push(*byte_ids(b"b"), drafted=True) == []
    pieces = [(delta.text, delta.drafted) for delta in output.push(*byte_ids(b"c"), drafted=False)]
    assert pieces == [("a", True), ("a", False), ("b", True), ("c", False)]


@pytest.mark.parametrize("sentence", SENTENCES[:6])
def test_plain_text_comes_at_once(sentence):
    """Nothing is held back without a reason: one delta for every token."""
    ids = TOKENIZER.encode_text(sentence)
    whole = [i for i in ids if TOKENIZER.token_bytes(i).isascii()]
    for token in whole:
        [delta] = OutputText(TOKENIZER, stop=["\x00"]).push(token, drafted=True)
        assert delta == Delta(kind="text", text=TOKENIZER.decode([token]), drafted=True)


STOPS = [
    ("hello world", ["wor"], "hello ", True),
    ("hello world", ["world"], "hello ", True),
    ("hello world", ["hello world"], "", True),
    ("hello world", ["hello world!"], "hello world", False),
    ("abcd", ["abcd", "bc"], "a", True),  # bc is complete first
    ("abcd", ["cd", "bcd"], "a", True),  # both end together: the longest
    ("aaab", ["aab"], "a", True),
    ("abababac", ["ababac"], "ab", True),
    ("a\n\nb", ["\n\n"], "a", True),
    ("naïve ☃!", ["☃"], "naïve ", True),
    ("twice twice", ["ice"], "tw", True),
]


@pytest.mark.parametrize(("text", "stops", "expected", "stopped"), STOPS)
@pytest.mark.parametrize("by_bytes", [False, True])
def test_stop_strings_cut_exactly(text, stops, expected, stopped, by_bytes):
    ids = byte_ids(text.encode()) if by_bytes else TOKENIZER.encode_text(text)
    output, deltas = pushed(ids, stop=stops)
    assert (output.text, output.stopped) == (expected, stopped)
    assert joined(deltas) == expected


def test_after_a_stop_string_nothing_counts():
    output, _ = pushed(TOKENIZER.encode_text("a stop b"), stop=["stop"], finish=False)
    assert output.stopped
    more = [CONTROL.channel_start, *TOKENIZER.encode_text("x"), *call_ids("call:f{}")]
    assert [output.push(token, drafted=False) for token in more] == [[]] * len(more)
    assert output.finish() == []
    assert (output.text, output.reasoning, output.num_tool_calls) == ("a ", "", 0)


def test_finish_ends_the_answer_once():
    output = OutputText(TOKENIZER, stop=["ab"])
    output.push(*byte_ids(b"a"), drafted=True)
    output.push(*byte_ids(b"\xe2"), drafted=True)
    assert output.text == ""
    assert joined(output.finish()) == "a\ufffd"
    assert output.text == "a\ufffd"
    assert (output.finish(), output.push(*byte_ids(b"x"), drafted=True)) == ([], [])
    assert not output.stopped


def test_a_thought_a_text_and_a_call():
    ids = [CONTROL.channel_start, *TOKENIZER.encode_text("thought\nhm ☃\n"), CONTROL.channel_end]
    ids += TOKENIZER.encode_text("Let me look.")
    ids += call_ids('call:get{city:"Oslo",days:[1,2]}')
    output, deltas = pushed(ids)
    assert (output.reasoning, output.text) == ("hm ☃\n", "Let me look.")
    call = ToolCall("get", {"city": "Oslo", "days": [1, 2]})
    assert output.tool_calls == [call]
    assert deltas[-1] == Delta(
        kind="tool_call",
        text='call:get{city:<|"|>Oslo<|"|>,days:[1,2]}',
        drafted=False,
        tool_call=call,
    )


def test_a_call_is_drafted_when_all_its_tokens_are():
    ids = call_ids("call:f{a:1}")
    for missing in [None, *range(len(ids))]:
        flags = [index != missing for index in range(len(ids))]
        [delta] = pushed(ids, flags=flags)[1]
        assert delta.drafted is (missing is None)


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        (call_ids('call:f{a:"x}'), '<|tool_call>call:f{a:<|"|>x}<tool_call|>'),
        (call_ids("call:f{}")[:-1], "<|tool_call>call:f{}"),
        (
            [*call_ids("no ☃"), *TOKENIZER.encode_text(" and on")],
            "<|tool_call>no ☃<tool_call|> and on",
        ),
        ([CONTROL.tool_call_start, CONTROL.turn_start], "<|tool_call><|turn>"),
    ],
)
def test_what_is_no_call_is_shown_as_text(ids, text):
    output, deltas = pushed(ids)
    assert (output.text, output.num_tool_calls) == (text, 0)
    assert joined(deltas) == text


def test_a_stop_string_cuts_a_malformed_call_too():
    output, _ = pushed(call_ids("call:f{stop}"), stop=["{st"])
    assert (output.text, output.stopped) == ("<|tool_call>call:f", True)


def test_stop_strings_do_not_reach_into_reasoning_or_calls():
    ids = [CONTROL.channel_start, *TOKENIZER.encode_text("thought\nstop"), CONTROL.channel_end]
    ids += [*TOKENIZER.encode_text("st"), *call_ids('call:f{a:"stop"}'), *byte_ids(b"op")]
    output, _ = pushed(ids, stop=["stop"])
    assert (output.reasoning, output.text, output.stopped) == ("stop", "stop", False)


def test_text_held_before_a_thought_comes_before_it():
    ids = [*byte_ids(b"st"), CONTROL.channel_start, *byte_ids(b"thought\nhm")]
    kinds = [(delta.kind, delta.text) for delta in pushed(ids, stop=["stop"])[1]]
    assert kinds == [("text", "st"), ("reasoning", "h"), ("reasoning", "m")]


def test_the_prompt_may_have_opened_the_thought():
    ids = [*TOKENIZER.encode_text("thought\nhm"), CONTROL.channel_end, *byte_ids(b"x")]
    output, _ = pushed(ids, in_reasoning=True)
    assert (output.reasoning, output.text) == ("thought\nhm", "x")  # the label was in the prompt


def test_raw_text_knows_no_channels_and_tools():
    ids = [
        CONTROL.channel_start,
        *byte_ids(b"thought\n"),
        CONTROL.channel_end,
        *call_ids("call:f{}"),
    ]
    output, deltas = pushed(ids, raw=True)
    assert (output.text, output.num_tool_calls) == ("thought\ncall:f{}", 0)
    assert {delta.kind for delta in deltas} == {"text"}


@pytest.mark.parametrize("stop", [[""], ["a", ""], "stop", [None], [b"x"], [["a"]]])
def test_a_stop_string_that_cannot_be_used_is_refused(stop):
    with pytest.raises(ConfigError, match="expected a list of texts"):
        OutputText(TOKENIZER, stop=stop)


def test_a_long_stop_string_costs_no_more_than_the_text():
    """A text that is all start of a stop string: work that grew with what is held would not end."""
    output, _ = pushed(byte_ids(b"a") * 100_000, stop=["a" * 99_999 + "b"])
    assert output.text == "a" * 100_000


def kinds_while(token_ids, **settings):
    """The kinds that were told, before the first token and after each, without repeats."""
    output = OutputText(TOKENIZER, **settings)
    seen = [output.kind]
    for token_id in token_ids:
        output.push(token_id, drafted=False)
        seen.append(output.kind)
    return [kind for kind, _ in groupby(seen)]


def test_what_is_being_written_is_known_before_the_next_token():
    token_ids = [
        CONTROL.channel_start,
        *TOKENIZER.encode_text("thought\nSo."),
        CONTROL.channel_end,
        CONTROL.tool_call_start,
        CONTROL.tool_call_end,
    ]
    assert kinds_while(token_ids) == ["prose", "reasoning", "prose", "code", "prose"]
    assert OutputText(TOKENIZER, in_reasoning=True).kind == "reasoning"


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("Use `ls`, or ``` in a line.", ["prose"]),
        ("So:\n```python\nx = 1\n```\nDone.", ["prose", "code", "prose"]),
        ("So:\n\n  ~~~\nx = 1\n  ~~~", ["prose", "code", "prose"]),
        ("```\nx", ["prose", "code"]),
        ("``\n`x", ["prose"]),
        ('\n {"a": "b"}\nmore', ["prose", "code"]),
        ("[1, 2]", ["prose", "code"]),
        ("A [link]", ["prose"]),
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_fences_and_json_are_code(text, kinds, raw):
    token_ids = byte_ids(text.encode())
    assert kinds_while(token_ids, raw=raw) == kinds
