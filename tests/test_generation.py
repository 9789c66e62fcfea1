"""Embeddings → text: settings, stops, choosing the next id, the cache, batches, and taking turns."""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minichat.errors import SettingsError
from minichat.inference.bot import MiniChat
from minichat.inference.generate import generate_rows, logits_processors, stream
from minichat.inference.kv_cache import KVCache
from minichat.inference.request import Prompt, StepLock
from minichat.inference.sampling import GenerationSettings, ReplyText, Stops
from minichat.prompt.conversation import Conversation
from minichat.prompt.tokenizer import FastTokenizer, SentencePieceTokenizer
from tests.interrupted import interrupted_at
from tests.tiny import counting, noise_picture, saying, spell, tiny_bot, tokenizer_model

EOS = 2
TOKENIZER = SentencePieceTokenizer(tokenizer_model())


def bytes_of(text: str) -> list[int]:
    """The byte-fallback ids of a text."""
    return [3 + byte for byte in text.encode()]


def say(ids: list[int], stops: Stops, tokenizer: Any = TOKENIZER) -> tuple[list[str], ReplyText]:
    """All pieces of a reply, the empty ones too, the last from its end."""
    reply = ReplyText(tokenizer, stops)
    pieces = []
    for token in ids:
        pieces.append(reply.push(token))
        if reply.finished:
            return pieces, reply
    return [*pieces, reply.close()], reply


# --- settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 10**9),
        ("max_new_tokens", -1),
        ("max_new_tokens", 0),
        ("max_new_tokens", 1.5),
        ("max_new_tokens", "5"),
        ("max_new_tokens", True),
        ("max_new_tokens", None),
        ("temperature", math.nan),
        ("temperature", -0.1),
        ("temperature", math.inf),
        ("temperature", "hot"),
        ("temperature", False),
        ("top_p", 0),
        ("top_p", 1.01),
        ("top_p", math.nan),
        ("num_beams", 0),
        ("num_beams", 10**6),
        ("num_beams", 2.0),
        ("repetition_penalty", 0),
        ("repetition_penalty", math.nan),
        ("repetition_penalty", -math.inf),
        ("seed", -1),
        ("seed", 2**63),
        ("seed", 0.5),
        ("seed", "x"),
    ],
)
def test_a_setting_out_of_range_is_named(field: str, value: Any) -> None:
    with pytest.raises(SettingsError, match=field):
        GenerationSettings(**{field: value})
    with pytest.raises(SettingsError, match=field):
        GenerationSettings().updated(**{field: value})


def test_settings_are_greedy_by_default_and_do_not_change() -> None:
    chosen = GenerationSettings()
    assert (chosen.temperature, chosen.num_beams, chosen.repetition_penalty) == (0, 1, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.temperature = 1.0  # type: ignore[misc]
    assert chosen.updated(temperature=1, top_p=0.5) == GenerationSettings(temperature=1, top_p=0.5)


def test_unknown_and_conflicting_settings() -> None:
    with pytest.raises(SettingsError, match="did you mean 'temperature'"):
        GenerationSettings().updated(temprature=1)
    with pytest.raises(SettingsError, match=r"num_beams is 2 and temperature is 0\.5"):
        GenerationSettings(num_beams=2, temperature=0.5)


# --- text and stops


def whole(ids: list[int], stops: Stops, tokenizer: Any = TOKENIZER) -> str:
    """The reply by definition: decode all ids up to the first stop (of two that end together, the longer), strip."""
    for end in range(1, len(ids) + 1):
        for sequence in sorted(stops.sequences, key=len, reverse=True):
            if tuple(ids[max(0, end - len(sequence)) : end]) == sequence:
                return tokenizer.decode(ids[: end - len(sequence)]).strip()
        text = tokenizer.decode(ids[:end])
        cut = min((text.find(s) for s in stops.strings if s in text), default=-1)
        if cut >= 0:
            return text[:cut].strip()
    return tokenizer.decode(ids).strip()


TRIMMING = SentencePieceTokenizer(tokenizer_model(extra_spaces=False))
INTERESTING = sorted(
    {*TOKENIZER.encode("### Assistant: It is red.\n  Yes"), 0, 1, EOS, *bytes_of("#\n 中é🙂"), *range(3, 259, 16), 399}
    | {i for i in range(259, 400) if not TOKENIZER.decode([i]).strip()}
)


@settings(max_examples=400, deadline=None)
@given(
    ids=st.lists(st.sampled_from(INTERESTING), max_size=24),
    strings=st.lists(st.sampled_from(["###", "#", "\n", "s t", "é中", " Assistant"]), max_size=3),
    sequences=st.lists(st.lists(st.sampled_from(INTERESTING), min_size=1, max_size=3).map(tuple), max_size=2),
    tokenizer=st.sampled_from([TOKENIZER, TRIMMING]),
)
def test_streamed_is_whole(
    ids: list[int], strings: list[str], sequences: list[tuple[int, ...]], tokenizer: SentencePieceTokenizer
) -> None:
    stops = Stops(tuple(strings), tuple(sequences))
    pieces, reply = say(ids, stops, tokenizer)
    assert "".join(pieces) == reply.text == whole(ids, stops, tokenizer)
    again = ReplyText(tokenizer, stops)
    assert again.read(ids) == reply.text
    kept = reply.ids()
    if kept is not None:
        assert tokenizer.decode(kept).strip() == reply.text
        assert tuple(ids[: len(kept)]) == kept


def test_streamed_is_whole_with_a_byte_level_tokenizer() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast = FastTokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>"))
    ids = fast.encode("  It is 中国, “é” 🙂 !\n\n### no")
    for stops in (Stops(), Stops(("###",)), Stops(("国,",)), Stops((), (tuple(ids[9:12]),))):
        pieces, reply = say(ids, stops, fast)
        assert "".join(pieces) == reply.text == whole(ids, stops, fast)
        assert len([piece for piece in pieces if piece]) > 3


def test_no_half_of_a_stop_is_shown() -> None:
    ids = [*TOKENIZER.encode("A cat#"), *bytes_of("#! ##"), *bytes_of("#"), *TOKENIZER.encode("Human: hi")]
    pieces, reply = say(ids, Stops(("###",)))
    assert reply.text == "A cat##!"
    assert reply.finished
    shown = list(itertools.accumulate(pieces))
    assert all("A cat##!".startswith(text) for text in shown)
    assert "A cat#" not in shown  # held back until it was clear that no stop had begun


def test_no_half_of_a_stop_sequence_is_shown() -> None:
    red, dot = TOKENIZER.encode("It is red"), TOKENIZER.encode(".")
    first, second = red[-1], dot[-1]
    stops = Stops((), ((first, second), (EOS,)))
    pieces, reply = say([*red, second, *red], stops)
    assert (reply.text, reply.ids()) == (TOKENIZER.decode(red[:-1]), tuple(red[:-1]))
    assert "".join(pieces) == reply.text
    pieces, reply = say([*red, EOS], stops)  # what looked like the beginning of a stop was text after all
    assert "".join(pieces) == reply.text == "It is red"
    assert reply.ids() == tuple(red)


def test_a_character_is_shown_whole() -> None:
    pieces, reply = say(bytes_of("é中🙂"), Stops())
    assert [piece for piece in pieces if piece] == ["é", "中", "🙂"]
    assert pieces[:2] == ["", "é"]
    pieces, reply = say(bytes_of("ab🙂")[:-1], Stops())  # cut in the middle of a character
    assert "".join(pieces) == reply.text == TOKENIZER.decode(bytes_of("ab🙂")[:-1])


def test_the_ids_of_a_reply_end_where_its_text_ends() -> None:
    red, stop = TOKENIZER.encode("It is red."), TOKENIZER.encode("###")
    stops = Stops(("###",), ((EOS,),))
    assert say([*red, *stop], stops)[1].ids() == tuple(red)
    assert say([*red, EOS], stops)[1].ids() == tuple(red)
    assert say(red, stops)[1].ids() == tuple(red)
    assert say([EOS], stops)[1].ids() == ()
    # White space before the stop is spelled by ids of its own: they are as good as none.
    assert TOKENIZER.decode(say([*red, *bytes_of("\n"), *stop], stops)[1].ids() or ()).strip() == "It is red."
    # The stop begins inside an id: no ids spell the text, it has to be spelled anew.
    star = TOKENIZER.encode("small star")
    assert len(star) > 1
    assert say(star, Stops(("r",)))[1].ids() is None


def test_a_long_reply_is_not_decoded_again_at_each_step() -> None:
    decoded = 0

    class Counting:
        def decode(self, ids: Any) -> str:
            nonlocal decoded
            decoded += len(ids)
            return TOKENIZER.decode(ids)

    ids = TOKENIZER.encode("The picture shows a red circle and a blue boat. ") * 40
    say(ids, Stops(("###",)), Counting())
    assert decoded < 5 * len(ids)


# --- choosing


def choose(chosen: GenerationSettings, logits: torch.Tensor, so_far: list[list[int]] | None = None) -> torch.Tensor:
    ids = torch.tensor(so_far or [[]] * len(logits), dtype=torch.long).reshape(len(logits), -1)
    return logits_processors(chosen, len(logits), logits.device)(ids, logits.clone()).argmax(-1)


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    for temperature in (0.5, 1.0, 3.0):
        drawn = choose(GenerationSettings(temperature=temperature), logits.repeat(20_000, 1))
        share = drawn.bincount(minlength=4) / len(drawn)
        torch.testing.assert_close(share, (logits / temperature).softmax(-1), rtol=0, atol=0.02)


def test_top_p_keeps_the_likeliest() -> None:
    logits = torch.tensor([0.6, 0.25, 0.1, 0.05]).log().repeat(2_000, 1)
    drawn = choose(GenerationSettings(temperature=1, top_p=0.8), logits)
    assert set(drawn.tolist()) == {0, 1}
    # The coldest and the hottest that may be set give numbers, not NaN.
    assert set(choose(GenerationSettings(temperature=1e-45, top_p=1e-9), logits).tolist()) == {0}
    assert set(choose(GenerationSettings(temperature=10), logits).tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_p", [1, 0.9])
@pytest.mark.parametrize("shift", [-100.0, 0.0, 100.0])
def test_the_coldest_temperature_takes_the_likeliest_wherever_the_scores_lie(shift: float, top_p: float) -> None:
    """Divided as they are, scores would all be infinite, and equal."""
    logits = torch.tensor([[1.0, 2.0, 4.0, 3.0]]).repeat(20, 1) + shift
    assert set(choose(GenerationSettings(temperature=1e-45, top_p=top_p), logits).tolist()) == {2}


def test_a_repeated_id_becomes_less_likely() -> None:
    logits = torch.tensor([[2.0, 1.9, 0.0]])
    assert choose(GenerationSettings(), logits, [[0]]).tolist() == [0]
    assert choose(GenerationSettings(repetition_penalty=1.2), logits, [[0]]).tolist() == [1]


def test_sampling_depends_on_its_seed_alone() -> None:
    bot = tiny_bot()
    ask = {"text": "What is it?", "max_new_tokens": 12, "temperature": 1.0}
    before = torch.random.get_rng_state()
    first = bot.chat().ask(**ask, seed=7)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(99)
    assert bot.chat().ask(**ask, seed=7) == first
    assert len({bot.chat().ask(**ask, seed=seed) for seed in range(8)}) > 4
    assert len({bot.chat().ask(**ask) for _ in range(8)}) > 4


# --- one reply, a batch of them, the cache


def prompt_of(bot: MiniChat, *turns: tuple[str, int]) -> Prompt:
    """Questions with pictures, and a reply between two of them."""
    asked = Conversation()
    for number, (text, pictures) in enumerate(turns):
        asked = asked.assistant("It is red.") if number else asked
        asked = asked.user(text, [noise_picture(10 * number + p) for p in range(pictures)])
    rendered = bot.processor.render(asked, add_generation_prompt=True)
    features = bot.encode(rendered.pictures) if rendered.pictures else None
    slots = iter([f"{i}" for i in range(len(rendered.pictures)) for _ in range(bot.processor.num_image_tokens)])
    keys = [next(slots) if i == bot.processor.image_token_id else i for i in rendered.ids]
    return Prompt(rendered.ids, keys, features)


def run(bot: MiniChat, prompt: Prompt, cache: KVCache, **changes: Any) -> ReplyText:
    reply = ReplyText(bot.processor.content_tokenizer, bot.stops)
    pieces = list(stream(bot.model, prompt, cache, GenerationSettings(**changes), reply))
    assert "".join(pieces) == reply.text
    return reply


@pytest.mark.parametrize("kind", ["qformer", "patch_merge"])
def test_cached_is_uncached(kind: str) -> None:
    bot = tiny_bot(kind=kind)
    prompt = prompt_of(bot, ("What is it?", 1), ("And these?", 2), ("Which is larger?", 0))
    cache = KVCache()
    said = run(bot, prompt, cache, max_new_tokens=12).generated
    assert len(cache.keys) == len(prompt.ids) + len(said) - 1  # the last id is not read
    ids = torch.tensor([[*prompt.ids, *said]])
    with torch.no_grad():
        logits = bot.model(input_ids=ids, image_features=prompt.features, use_cache=False).logits[0]
    assert said == logits[len(prompt.ids) - 1 : -1].argmax(-1).tolist()
    # What the cache says of the next id is what a pass over everything says.
    with torch.inference_mode():
        cached = cache.read(bot.model, bot.model.get_input_embeddings()(ids[:, -1:]), said[-1:])
    torch.testing.assert_close(cached[0], logits[-1], rtol=0, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_is_one_by_one(beams: int) -> None:
    bot = tiny_bot()
    asked = [
        Conversation().user(text, [noise_picture(10 * row + p) for p in range(pictures)])
        for row, (text, pictures) in enumerate(
            [("Hi", 0), ("What is it?", 1), ("Compare them, please, in detail.", 2), ("Which is larger?", 2)]
        )
    ]
    rendered = [bot.processor.render(c, add_generation_prompt=True) for c in asked]
    chosen = GenerationSettings(max_new_tokens=10, num_beams=beams)

    def answer(rows: list[Any]) -> list[list[int]]:
        batch = bot.processor.batch(rows)
        with torch.inference_mode():
            embeds = bot.model.embed(batch["input_ids"], batch.get("pixel_values"))
        replies = generate_rows(
            bot.model, embeds, batch["attention_mask"], chosen, bot.processor.content_tokenizer, bot.stops
        )
        return [list(reply.ids() or ()) for reply in replies]

    together = answer(rendered)
    assert together == [ids for row in rendered for ids in answer([row])]
    assert len({tuple(ids) for ids in together}) > 1
    if beams == 1:  # the loop that streams says the same
        for conversation, ids in zip(asked, together, strict=True):
            chat = bot.chat(max_new_tokens=10)
            chat.ask(conversation.messages[-1].text, conversation.pictures)
            assert list(chat.conversation.messages[-1].ids or ()) == ids


def test_rows_of_a_batch_stop_by_themselves() -> None:
    bot = tiny_bot("vicuna-v0")
    words, stop = spell(bot, "It is red."), spell(bot, "###")
    short, long = [*words, *stop], [*words, *words, *words]
    script = iter(zip([*short, *[400 - 1] * 99], long, strict=False))
    steps = 0

    def force(module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        nonlocal steps
        steps += 1
        for row, token in enumerate(next(script)):
            output.logits[row, -1, token] = 1e6
        return output

    rendered = [bot.processor.render(Conversation().user(t), add_generation_prompt=True) for t in ("Hi", "And you?")]
    batch = bot.processor.batch(rendered)
    hook = bot.model.language_model.register_forward_hook(force, with_kwargs=True)
    try:
        replies = generate_rows(
            bot.model,
            bot.model.embed(batch["input_ids"]),
            batch["attention_mask"],
            GenerationSettings(max_new_tokens=len(long)),
            bot.processor.content_tokenizer,
            bot.stops,
        )
    finally:
        hook.remove()
    assert [reply.text for reply in replies] == ["It is red.", TOKENIZER.decode(long)]
    assert steps == len(long)


def test_a_models_own_generation_config_does_not_decide() -> None:
    """Llama-2's asks for sampling; what is not asked for here is not done."""
    bot = tiny_bot()
    picture = noise_picture(1)
    plain = bot.caption([picture], max_new_tokens=8)
    own = bot.model.generation_config
    own.do_sample, own.temperature, own.top_p, own.repetition_penalty, own.num_beams = True, 9.0, 0.9, 0.1, 3
    own.min_length, own.no_repeat_ngram_size = 20, 1
    assert bot.caption([picture], max_new_tokens=8) == plain
    assert bot.chat().ask("Describe this image in detail.", picture, max_new_tokens=8) == plain[0]


def test_an_image_slot_is_never_generated() -> None:
    bot = tiny_bot(image_token_index=399)  # the LLM has a row for it
    chat = bot.chat(max_new_tokens=4)
    with saying(bot, [399] * 99):
        chat.ask("What is it?", noise_picture())
        ids = chat.conversation.messages[-1].ids
        assert ids is not None
        assert len(ids) == 4
        assert 399 not in ids
        assert chat.ask("And now?") != ""
        bot.caption([noise_picture()], max_new_tokens=4)


def test_memory_keeps_what_still_holds() -> None:
    bot = tiny_bot()
    prompt = prompt_of(bot, ("What is it?", 1), ("And these?", 2))
    cache = KVCache()
    first = run(bot, prompt, cache, max_new_tokens=5)
    with counting(bot) as counts:
        again = run(bot, prompt, cache, max_new_tokens=5)
    assert again.generated == first.generated
    # Of the prompt only its last token is read again, of the reply all but its last.
    assert counts["tokens"] == len(first.generated) > 1
    # A picture is kept whole or not at all, and what differs ends what is kept.
    slots = [i for i, key in enumerate(prompt.keys) if isinstance(key, str)]
    n = bot.processor.num_image_tokens
    for wanted, kept in [
        (prompt.keys[: slots[n] + 2], slots[n]),  # ends inside the second picture
        ([*prompt.keys[: slots[0]], *["other"] * n, 5], slots[0]),
        ([*prompt.keys[:3], 399, 398], 3),
        ([399, 398], 0),
        ([], 0),
    ]:
        run(bot, prompt, cache, max_new_tokens=1)
        assert cache.keep(wanted) == kept == len(cache.keys)
        assert (cache.past.get_seq_length() if cache.past else 0) == kept


def test_a_cropped_cache_is_as_good_as_new() -> None:
    bot = tiny_bot()
    short = prompt_of(bot, ("What is it?", 1))
    long = prompt_of(bot, ("What is it?", 1), ("And these?", 2))
    used, new = KVCache(), KVCache()
    run(bot, long, used, max_new_tokens=9)
    assert run(bot, short, used, max_new_tokens=9).generated == run(bot, short, new, max_new_tokens=9).generated
    for old, fresh in zip(used.past.layers, new.past.layers, strict=True):  # type: ignore[union-attr]
        torch.testing.assert_close(old.keys, fresh.keys, rtol=0, atol=1e-4)
        torch.testing.assert_close(old.values, fresh.values, rtol=0, atol=1e-4)


def test_a_cache_that_cannot_be_cropped_is_dropped() -> None:
    """A sliding window has forgotten what it would have to go back to."""
    window = {"model_type": "mistral", "sliding_window": 16, "num_key_value_heads": 2}
    bot = tiny_bot(text=window)
    chat, fresh = bot.chat(max_new_tokens=6), bot.chat(max_new_tokens=6)
    chat.ask("What is in the picture, and what colour is it?", noise_picture())
    chat.ask("How many stars are there?")
    assert chat.edit(1, "Is it large?") == chat.regenerate()
    fresh.ask("What is in the picture, and what colour is it?", noise_picture())
    fresh.ask("Is it large?")
    assert fresh.conversation == chat.conversation


def test_nothing_half_read_is_kept() -> None:
    """An error between two layers leaves one with more in its cache than the other."""
    bot = tiny_bot()
    prompt, cache = prompt_of(bot, ("What is it?", 1)), KVCache()
    calls = itertools.count(1)

    def fail(module: Any, args: Any) -> None:
        if next(calls) == 3:
            raise ValueError("boom")

    hook = bot.model.language_model.model.layers[1].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="boom"):
        run(bot, prompt, cache, max_new_tokens=5)
    hook.remove()
    assert (cache.keys, cache.past) == ([], None)
    assert (
        run(bot, prompt, cache, max_new_tokens=5).generated == run(bot, prompt, KVCache(), max_new_tokens=5).generated
    )


def test_cancelled_between_two_steps() -> None:
    bot = tiny_bot()
    words = spell(bot, "The picture shows a red circle.")
    prompt, cache = prompt_of(bot, ("What is it?", 1)), KVCache()
    stop = threading.Event()
    reply = ReplyText(bot.processor.content_tokenizer, bot.stops)
    with saying(bot, words) as read:
        pieces = stream(bot.model, prompt, cache, GenerationSettings(), reply, cancelled=stop.is_set)
        next(pieces)
        stop.set()
        assert list(pieces) == []
    assert len(read) <= 2


# --- taking turns


def test_the_step_lock_admits_one_at_a_time_in_order() -> None:
    step_lock = StepLock()
    inside, most, order = 0, 0, []
    waiting = [threading.Event() for _ in range(6)]

    def pass_through(number: int) -> None:
        nonlocal inside, most
        waiting[number].set()
        with step_lock:
            inside += 1
            most = max(most, inside)
            order.append(number)
            inside -= 1

    threads = []
    with step_lock:
        for number in range(6):
            threads.append(threading.Thread(target=pass_through, args=[number]))
            threads[-1].start()
            waiting[number].wait(5)
            while len(step_lock._queue) <= number + 1:  # this thread, and those who wait
                pass
    for thread in threads:
        thread.join(5)
    assert (most, order) == (1, list(range(6)))
    with step_lock:  # it is free again
        pass


def test_who_comes_back_at_once_does_not_overtake() -> None:
    step_lock, entered = StepLock(), threading.Event()

    def enter() -> None:
        with step_lock:
            entered.set()

    for _ in range(20):
        entered.clear()
        thread = threading.Thread(target=enter)
        with step_lock:
            thread.start()
            while len(step_lock._queue) < 2:
                pass
        with step_lock:
            assert entered.is_set()
        thread.join(5)


def test_an_error_or_an_interrupt_frees_the_step_lock() -> None:
    step_lock = StepLock()
    with pytest.raises(RuntimeError), step_lock:
        raise RuntimeError
    with step_lock:
        step_lock.let_others_pass()  # nobody waits
    entered = threading.Event()

    def enter() -> None:
        with step_lock:
            entered.set()

    step_lock.__enter__()
    thread = threading.Thread(target=enter)
    thread.start()
    while len(step_lock._queue) < 2:
        pass
    step_lock.let_others_pass()  # lets the other through and comes back
    assert entered.is_set()
    step_lock.__exit__(None, None, None)
    thread.join(5)
    with step_lock:
        pass


def test_ctrl_c_where_others_are_let_pass_admits_nobody_else() -> None:
    """The interrupted thread gave its place away: leaving the block must not open the gate once more."""
    step_lock, order, let_go = StepLock(), list[str](), threading.Event()

    def first() -> None:
        with step_lock:
            order.append("first in")
            while len(step_lock._queue) < 3:  # this one, the second, and the main thread that waits behind it
                pass
            signal.raise_signal(signal.SIGINT)  # Python hands signals to the main thread
            assert let_go.wait(5)
            order.append("first out")

    def second() -> None:
        with step_lock:
            order.append("second in")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    with pytest.raises(KeyboardInterrupt), step_lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(step_lock._queue) < number + 2:
                pass
        step_lock.let_others_pass()
    assert len(step_lock._queue) == 2  # the second still waits for the first
    order.append("interrupted")
    let_go.set()
    for thread in threads:
        thread.join(5)
    assert order == ["first in", "interrupted", "first out", "second in"]


def test_ctrl_c_at_any_line_neither_admits_two_nor_locks_anyone_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minichat.inference.request._LOOK_AGAIN", 0.01)
    inside, most = 0, 0

    def stay() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        inside -= 1

    def pass_through(step_lock: StepLock) -> None:
        with step_lock:
            stay()

    def let_pass(step_lock: StepLock, other: threading.Thread) -> None:
        with step_lock:
            other.start()
            while len(step_lock._queue) < 2:
                pass
            step_lock.let_others_pass()
            stay()

    for line in itertools.count():
        step_lock = StepLock()
        other = threading.Thread(target=pass_through, args=[step_lock], daemon=True)
        interrupted = interrupted_at(line, lambda t=step_lock, o=other: let_pass(t, o), StepLock)
        pass_through(step_lock)  # its own next step
        if other.ident is not None:
            other.join(5)
            assert not other.is_alive()
        assert not step_lock._queue
        if not interrupted:
            break
    assert most == 1
    assert line > 10


def test_what_the_model_keeps_to_itself_is_never_generated() -> None:
    """`suppress_tokens` of its generation_config.json: alone, in batches and by beams."""
    bot = tiny_bot()
    bot.model.generation_config.suppress_tokens = [*range(3, 200), 10_000, -1]
    with saying(bot, [100] * 99):
        chat = bot.chat(max_new_tokens=4)
        chat.ask("What is it?", noise_picture())
        ids = chat.conversation.messages[-1].ids
    assert ids is not None and len(ids) == 4 and not {*ids} & {*range(3, 200)}
    spelled = {bot.processor.content_tokenizer.decode([token]) for token in range(200, 400)} | {""}
    for chosen in ({}, {"num_beams": 2}, {"temperature": 1.0, "seed": 1}):
        for caption in bot.caption([noise_picture(1), noise_picture(2)], max_new_tokens=1, **chosen):
            assert caption in {text.strip() for text in spelled}
