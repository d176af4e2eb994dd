"""The bench's stand-in engine keeps to the model that its README states: batching, prefix cache, a step's time."""

from __future__ import annotations

import pytest

from tests.bench.engine import BLOCK_TOKENS, Constants, Engine, Generation, PrefixCache, block_hashes

FIXED = Constants(
    step_ms=10, prefill_ms_a_token=0.1, decode_ms_a_sequence=1, most_running=2, most_tokens_a_step=100, blocks=20
)


def words(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(count)]


def finish(engine: Engine, limit: int = 1000) -> float:
    """Steps until there is nothing to do; the seconds that it took."""
    passed_s = 0.0
    for _ in range(limit):
        step = engine.step()
        if step is None:
            return passed_s
        passed_s += step.lasts_s
        engine.made(step)
    raise AssertionError("the engine never came to rest")


def served(engine: Engine, prompt: list[str], output_tokens: int = 1) -> Generation:
    generation = engine.add(prompt, output_tokens)
    finish(engine)
    return generation


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_step_takes_its_base_and_what_each_prompt_token_and_each_running_sequence_adds() -> None:
    engine = Engine(FIXED)
    engine.add(words("a", 40), 3)
    first = engine.step()
    assert first is not None
    assert first.lasts_s == pytest.approx((10 + 40 * 0.1) / 1000)
    engine.made(first)
    second = engine.step()
    assert second is not None
    assert second.lasts_s == pytest.approx((10 + 1) / 1000)


def test_a_prompt_that_is_computed_in_a_step_gets_its_first_token_at_that_steps_end() -> None:
    engine = Engine(FIXED)
    generation = engine.add(words("a", 40), 3)
    step = engine.step()
    assert step is not None
    assert engine.made(step) == [generation]
    assert generation.made == 1


def test_a_prompt_longer_than_a_steps_tokens_is_computed_over_several() -> None:
    engine = Engine(FIXED)
    generation = engine.add(words("a", 250), 1)
    steps = [step for step in (engine.step(), engine.step(), engine.step()) if step is not None]
    assert [step.makes for step in steps] == [[], [], [generation]]


def test_running_sequences_are_served_before_prompts() -> None:
    engine = Engine(FIXED)
    engine.add(words("a", 16), 5)
    step = engine.step()
    assert step is not None
    engine.made(step)
    late = engine.add(words("b", 100), 1)
    engine.step()
    assert late.computed == 99  # one of the step's 100 tokens is the first sequence's


def test_no_more_run_at_once_than_may_and_the_next_comes_in_when_one_ends() -> None:
    engine = Engine(FIXED)
    generations = [engine.add(words(name, 16), 2) for name in "abc"]
    step = engine.step()
    assert step is not None
    assert (len(engine.running), len(engine.waiting)) == (2, 1)
    finish(engine)
    assert all(generation.ended for generation in generations)


def test_a_prompt_waits_while_the_cache_has_no_room_for_it() -> None:
    engine = Engine(FIXED)
    engine.add(words("a", 16 * 12), 4)
    second = engine.add(words("b", 16 * 12), 4)
    for _ in range(3):
        step = engine.step()
        assert step is not None
        engine.made(step)
    assert second.computed == 0
    finish(engine)
    assert second.ended


def test_what_could_never_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than the cache"):
        Engine(FIXED).add(words("a", 16 * 20), 1)


def test_a_sequence_whose_caller_has_gone_gives_its_blocks_back() -> None:
    engine = Engine(FIXED)
    generation = engine.add(words("a", 32), 1000 // BLOCK_TOKENS)
    step = engine.step()
    assert step is not None
    generation.gone = True
    assert engine.made(step) == []
    assert engine.step() is None
    assert engine.cache.free == FIXED.blocks


# --- the prefix cache -------------------------------------------------------------------------------------------------


def test_a_cached_prefix_costs_no_prefill_and_counts_as_hit() -> None:
    engine = Engine(FIXED)
    served(engine, words("p", 64) + words("x", 5))
    engine.add(words("p", 64) + words("y", 5), 1)
    step = engine.step()
    assert step is not None
    assert step.lasts_s == pytest.approx((10 + 5 * 0.1) / 1000)
    assert (engine.queried_tokens, engine.hit_tokens) == (138, 64)


def test_of_a_prompt_that_is_all_there_the_last_block_is_computed_again() -> None:
    engine = Engine(FIXED)
    served(engine, words("p", 64))
    assert served(engine, words("p", 64)).cached_tokens == 48


def test_a_block_is_known_only_together_with_all_before_it() -> None:
    one, other = block_hashes(words("a", 16) + words("z", 16)), block_hashes(words("b", 16) + words("z", 16))
    assert one[1] != other[1]


@pytest.mark.parametrize(("asked", "hits"), [("a", 7), ("c", 7), ("b", 5)])
def test_the_least_recently_used_prefix_makes_room(asked: str, hits: int) -> None:
    engine = Engine(FIXED)  # 20 blocks: of three prompts with 7 full ones only 19 and one in the making fit
    for name in "abac":
        served(engine, words(name, 16 * 7 + 1))
    assert served(engine, words(asked, 16 * 7 + 1)).cached_tokens == hits * BLOCK_TOKENS


def test_a_prompts_last_blocks_are_forgotten_before_its_first() -> None:
    cache = PrefixCache(4)
    hashes = block_hashes(words("a", 64))
    assert cache.reserve([], 4)
    assert all(cache.register(digest) for digest in hashes)
    cache.release(hashes, 0)
    assert cache.reserve([], 2)
    assert cache.cached(hashes) == 2


def test_blocks_that_are_in_use_are_never_taken_away() -> None:
    cache = PrefixCache(4)
    hashes = block_hashes(words("a", 32))
    cache.reserve([], 2)
    for digest in hashes:
        cache.register(digest)
    assert not cache.reserve([], 3)
    assert cache.cached(hashes) == 2
    assert cache.reserve(hashes, 2)


def test_blocks_are_neither_lost_nor_made_over_many_overlapping_requests() -> None:
    engine = Engine(FIXED)
    for number in range(200):
        engine.add(words(f"p{number % 5}", 16 * 4) + words(f"u{number}", number % 37), 1 + number % 4)
        if number % 3 == 0 and (step := engine.step()) is not None:
            engine.made(step)
    finish(engine)
    assert engine.cache.free == FIXED.blocks


def test_a_forgotten_cache_hits_nothing() -> None:
    engine = Engine(FIXED)
    served(engine, words("p", 64))
    engine.forget()
    assert served(engine, words("p", 65)).cached_tokens == 0
    assert engine.cache.free == FIXED.blocks


def test_a_kept_block_that_is_shared_is_not_counted_as_room_for_others() -> None:
    cache = PrefixCache(4)
    hashes = block_hashes(words("a", 32))
    cache.reserve([], 2)
    for digest in hashes:
        cache.register(digest)
    cache.release(hashes, 0)
    assert not cache.reserve(hashes, 3)
    assert cache.free == 4


def test_a_prompt_for_which_a_step_has_no_tokens_left_stays_in_the_queue() -> None:
    engine = Engine(FIXED)
    for name in "ab":
        engine.add(words(name, 100), 1)
    engine.step()
    assert (len(engine.running), len(engine.waiting)) == (1, 1)
