"""Each scorer's verdicts, the combination, and that the stream's cuts make no difference."""

from __future__ import annotations

import math
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sona_stream import plugins
from sona_stream.config.settings import ScoringSettings
from sona_stream.errors import ConfigError
from sona_stream.events import Delta, Finish, Piece, Request, Sampling
from sona_stream.quality import create_combined, emptiness, finish_reason, logprob, repetition

STOP = Finish(reason="stop")

PROSE = (
    "The river rises in the hills north of the town and runs south for some forty miles before it meets the sea. "
    "Along its banks stand mills that once ground corn for half the county; most of them are houses now. In spring "
    "the meadows flood, and the lower road is closed for a week or two, which visitors find charming and farmers "
    "do not. A ferry used to cross below the church, rowed by a family whose name nobody remembers."
)
OTHER_TONGUES = {
    "chinese": "河流发源于小镇北部的山丘，向南流淌约四十英里后汇入大海。两岸矗立着许多磨坊，曾经为半个县磨制谷物，"
    "如今大多已改建为住宅。每到春天，草地被洪水淹没，低处的道路会关闭一两个星期，游客觉得迷人，农夫却不这么想。",
    "japanese": "川は町の北の丘陵に源を発し、南へおよそ六十キロ流れて海に注ぐ。岸辺には、かつて郡の半分の穀物を挽いた"  # noqa: E501
    "水車小屋が並んでいるが、今ではほとんどが住宅になっている。春には牧草地が水に浸かり、下の道は一、二週間閉ざされる。",
    "thai": "แม่น้ำมีต้นกำเนิดจากเนินเขาทางเหนือของเมืองและไหลลงใต้ราวสี่สิบไมล์ก่อนจะลงสู่ทะเล ริมฝั่งมีโรงสีซึ่งเคยโม่ข้าวให้ครึ่งหนึ่งของมณฑล",
    "hindi": "नदी नगर के उत्तर की पहाड़ियों से निकलती है और समुद्र से मिलने से पहले लगभग चालीस मील दक्षिण की ओर बहती है। "
    "इसके किनारों पर वे चक्कियाँ खड़ी हैं जो कभी आधे ज़िले का अनाज पीसती थीं; अब उनमें से अधिकांश घर बन चुकी हैं।",
    "arabic": "ينبع النهر من التلال الواقعة شمال البلدة ويجري جنوبًا نحو أربعين ميلًا قبل أن يصب في البحر، وعلى ضفتيه "  # noqa: E501
    "طواحين كانت تطحن الحبوب لنصف المقاطعة، وقد صار معظمها بيوتًا الآن.",
    "german": "Der Fluss entspringt in den Hügeln nördlich der Stadt und fließt etwa vierzig Meilen nach Süden, "
    "ehe er das Meer erreicht. An seinen Ufern stehen Mühlen, die einst das Korn der halben Grafschaft mahlten.",
}


def request(n=1):
    return Request(id="r", endpoint="completions", model="m", body=b"", sampling=Sampling(n=n))


def judge(scorer, pieces, finish=STOP, n=1):
    scoring = scorer.begin(request(n))
    for piece in pieces:
        scoring.push(Delta(pieces=(piece,)))
    return scoring.finish(finish)


def texts(*parts, index=0, **more):
    return [Piece(index=index, text=part, **more) for part in parts]


def everything():
    return create_combined([module.create_scorer() for module in (emptiness, finish_reason, logprob, repetition)])


# -- finish reason ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "value"),
    [
        ("stop", 1.0),
        ("tool_calls", 1.0),
        ("length", 0.5),
        ("content_filter", 0.0),
        ("house rule", None),
        (None, None),
    ],
)
def test_finish_reason(reason, value):
    scorer = finish_reason.create_scorer()
    assert judge(scorer, [Piece(text="x", finish_reason=reason)], Finish(reason=reason)) == value
    assert judge(scorer, texts("x"), Finish(reason=reason)) == value


def test_finish_reason_of_many_choices_and_of_broken_answers():
    scorer = finish_reason.create_scorer()
    ended = [Piece(index=0, finish_reason="stop"), Piece(index=1, finish_reason="length")]
    assert judge(scorer, ended, Finish(reason="stop"), n=2) == 0.75
    assert judge(scorer, ended, None, n=2) is None


# -- emptiness -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 1),
        ("\u4f60", 1),
        ("\U0001f44d", 1),
        ("...", 0.25),
        (" \n\t", 0),
        ("", 0),
        ("\u200b\u200d", 0),
        ("x" * 9, 1),
    ],
)
def test_emptiness(text, value):
    assert judge(emptiness.create_scorer(), texts(text)) == value
    assert judge(emptiness.create_scorer(), texts(*text)) == value


def test_emptiness_of_calls_choices_and_broken_answers():
    scorer = emptiness.create_scorer()
    assert judge(scorer, [Piece(finish_reason="tool_calls")], Finish(reason="tool_calls")) == 1
    assert judge(scorer, [], Finish(reason="tool_calls")) == 1
    assert judge(scorer, [], STOP) == 0
    assert judge(scorer, [Piece(reasoning="hm")], Finish(reason="length")) == 0
    assert judge(scorer, texts("yes"), STOP, n=4) == 0.25
    assert judge(scorer, [], None) is None
    assert judge(scorer, texts(" "), None) is None
    assert judge(scorer, texts("yes"), None, n=2) == 1


# -- log-probability -------------------------------------------------------------------------------------------


def test_logprob_is_the_inverse_perplexity_however_it_is_cut():
    scorer, values = logprob.create_scorer(), [-0.1, -2.0, -0.4]
    whole = judge(scorer, [Piece(logprobs=tuple(values))])
    assert whole == pytest.approx(math.exp(sum(values) / 3))
    assert judge(scorer, [Piece(logprobs=(value,)) for value in values]) == pytest.approx(whole)
    assert judge(scorer, [Piece(logprobs=tuple(values))], None) == pytest.approx(whole)
    assert judge(scorer, texts("no numbers")) is None


def test_logprob_takes_odd_numbers_and_many_choices():
    scorer = logprob.create_scorer()
    assert judge(scorer, [Piece(logprobs=(math.nan, -1.0))]) == pytest.approx(math.exp(-1))
    assert judge(scorer, [Piece(logprobs=(-math.inf, 0.0))]) == pytest.approx(math.exp(-10))
    assert judge(scorer, [Piece(logprobs=(1e-7,))]) == 1.0
    two = [Piece(index=0, logprobs=(0.0,)), Piece(index=1, logprobs=(math.log(0.5),))]
    assert judge(scorer, two, n=2) == pytest.approx(0.75)


# -- repetition ------------------------------------------------------------------------------------------------


def repeats(text):
    return judge(repetition.create_scorer(), texts(text))


@pytest.mark.parametrize("tongue", OTHER_TONGUES)
def test_natural_text_of_any_script_is_free_of_loops(tongue):
    assert repeats(OTHER_TONGUES[tongue]) == 1.0
    assert repeats(PROSE + OTHER_TONGUES[tongue]) == 1.0


@pytest.mark.parametrize(
    "loop",
    [
        "and ",
        "!",
        "I am sorry. ",
        "a",
        "\U0001f600",
        "我不知道。",
        "ครับ",
        "मैं नहीं जानता। ",
        "no\n",
        "one two three four five six. ",
    ],
)
def test_a_loop_is_seen_in_any_script_also_after_a_good_beginning(loop):
    again = loop * max(100, 3000 // len(loop))
    assert repeats(again) < 0.2
    assert repeats(PROSE + " " + again) < 0.3


def test_some_repetition_is_ordinary():
    table = "| name | size |\n| --- | --- |\n" + "".join(f"| file{n}.txt | {n * n} kB |\n" for n in range(12))
    verse = "".join(f"{line}\nand the wheel goes round and round\n" for line in PROSE.split(". "))
    assert repeats(verse) == 1.0
    assert repeats(table) > 0.5
    assert repeats("Yes. Yes, yes.") is None
    assert repeats("") is None


def test_repetition_looks_back_a_bounded_way_and_keeps_bounded_state():
    meter = repetition.LoopMeter()
    for number in range(20_000):
        meter.push(f"w{number} ")
    assert len(meter._last) <= 2 * repetition.WINDOW
    assert sum(map(len, meter._buffer)) < 1000
    assert meter.finish() == 1.0
    far = " ".join(f"x{n}" for n in range(repetition.WINDOW + 50))
    assert repeats(f"{far} {far} {far}") == 1.0
    near = " ".join(f"x{n}" for n in range(repetition.WINDOW - 50))
    assert repeats(f"{near} " * 12) < 0.5


def test_repetition_of_many_choices_and_of_broken_answers():
    scorer = repetition.create_scorer()
    both = [*texts(PROSE, index=0), *texts("no no " * 300, index=1)]
    value = judge(scorer, both, n=2)
    assert 0.5 <= value < 0.6
    assert judge(scorer, both, None, n=2) == value


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_cuts_of_the_stream_make_no_difference(data):
    alphabet = st.sampled_from(
        ["a", "B", " ", "Σ", "!", "\n", "你", "ก", "ि", "é", "\U0001f600", "x" * 30, "loop de ", "_", "\u0130"]
    )
    text = "".join(data.draw(st.lists(alphabet, max_size=160)))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    pieces = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert "".join(pieces) == text
    whole = judge(everything(), texts(text))
    assert judge(everything(), texts(*pieces)) == whole
    assert judge(everything(), texts(*text)) == whole
    together = everything().begin(request())
    together.push(Delta(pieces=tuple(texts(*pieces))))
    assert together.finish(STOP) == whole
    share = naive_share(text)
    expected = (
        None
        if share is None
        else 1.0
        if share <= repetition.TOLERATED
        else (1 - share) / (1 - repetition.TOLERATED)
    )
    assert whole.parts.get("repetition") == (None if expected is None else pytest.approx(expected))


def naive_share(text):
    """The definition, read off the whole text at once."""
    words = repetition.units(text)
    fours = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    repeated = [four in fours[max(0, at - repetition.WINDOW + 1) : at] for at, four in enumerate(fours)]
    recent = 0.0
    for one in repeated:
        recent += (one - recent) / 64
    return None if len(fours) < 8 else max(sum(repeated) / len(fours), recent)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.builds(
            Piece,
            index=st.integers(0, 2),
            text=st.text(max_size=8),
            logprobs=st.lists(st.one_of(st.floats(max_value=0), st.just(math.nan)), max_size=2).map(tuple),
            finish_reason=st.sampled_from([None, "stop", "length", "odd"]),
        ),
        max_size=30,
    ),
    st.sampled_from([None, STOP, Finish()]),
)
def test_whatever_comes_the_score_is_in_its_range(pieces, finish):
    score = judge(everything(), pieces, finish, n=3)
    assert all(0 <= part <= 1 for part in score.parts.values())
    assert (score.value is None) == (not score.parts)
    assert score.value is None or 0 <= score.value <= 1


# -- combination -----------------------------------------------------------------------------------------------


class Fixed:
    def __init__(self, name, value, weight=1.0):
        self.name, self.value, self.weight = name, value, weight

    def begin(self, request):
        return self

    def push(self, delta):
        pass

    def finish(self, finish):
        return self.value


@pytest.mark.parametrize(
    ("parts", "value"),
    [
        ([("a", 0.25, 1), ("b", 1.0, 1)], 0.5),
        ([("a", 0.25, 1), ("b", 1.0, 3)], 0.25**0.25),
        ([("a", 0.0, 0.1), ("b", 1.0, 3)], 0.0),
        ([("a", None, 1), ("b", 0.7, 3)], 0.7),
        ([("a", math.nan, 1), ("b", 0.7, 3)], 0.7),
        ([("a", 0.1, 0), ("b", 0.7, 3)], 0.7),
        ([("a", 1.7, 1), ("b", 1.0, 1)], 1.0),
        ([("a", None, 1)], None),
        ([("a", 0.5, 0)], None),
        ([], None),
    ],
)
def test_combination(parts, value):
    combined = create_combined([Fixed(name, part, weight) for name, part, weight in parts])
    score = combined.begin(request()).finish(STOP)
    assert score.value == (None if value is None else pytest.approx(value))
    assert set(score.parts) == {name for name, part, _ in parts if part is not None and not math.isnan(part)}


def test_two_scorers_cannot_share_a_name():
    with pytest.raises(ConfigError, match="same name"):
        create_combined([Fixed("a", 1), Fixed("a", 1)])


def test_the_built_in_scorers_come_through_the_plugin_door_with_their_weights():
    scoring = ScoringSettings(weights={"repetition": 2.5, "logprob": 0.0})
    loaded = {
        name: plugins.load("scorers", name)(scoring)
        for name in ("emptiness", "finish_reason", "logprob", "repetition")
    }
    assert {name: scorer.name for name, scorer in loaded.items()} == {name: name for name in loaded}
    assert {name: scorer.weight for name, scorer in loaded.items()} == {
        "emptiness": 1.0,
        "finish_reason": 1.0,
        "logprob": 0.0,
        "repetition": 2.5,
    }
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match=r"sona\.scoring\.weights\.logprob"):
            logprob.create_scorer(ScoringSettings(weights={"logprob": bad}))


def test_a_good_answer_outranks_each_kind_of_bad_one():
    def value(text, reason="stop"):
        return judge(
            everything(), [*texts(*text.split(" ")), Piece(finish_reason=reason)], Finish(reason=reason)
        ).value

    good = value(PROSE.replace(" ", "  "))
    assert good == 1.0
    for bad in (value(""), value("no  " * 400), value(PROSE.replace(" ", "  "), "length"), value("...")):
        assert bad < good


@pytest.mark.skipif(sys.gettrace() is not None, reason="being traced")
def test_a_push_is_cheap():
    words = [Delta(pieces=(Piece(text=f" {word}", logprobs=(-0.5,)),)) for word in (PROSE * 20).split(" ")]

    def computing(each):
        """Seconds of this thread's own: what else runs on the machine does not count."""
        started = time.thread_time()
        for delta in words:
            each(delta)
        return time.thread_time() - started

    def made_again(delta):
        (piece,) = delta.pieces
        return Delta(pieces=(Piece(text=piece.text, logprobs=tuple(piece.logprobs)),))

    passes = [(computing(everything().begin(request()).push), computing(made_again)) for _ in range(7)]
    pushes, makings = zip(*passes, strict=True)
    assert min(pushes) < 3 * min(makings), "a few times what the event itself costs (0.9 when this was written)"
