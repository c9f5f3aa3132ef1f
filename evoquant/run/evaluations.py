"""Evaluating many plans: answered from the journal where it knows them, bounded in number where it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from asyncio_pool import AioPool

from evoquant.errors import EvoQuantError, RunError
from evoquant.evaluate import IMAGE_SCORE, Plan, Scores, accuracy_of
from evoquant.run.executors import Executor
from evoquant.run.journal import Journal, Record
from evoquant.run.race import Race
from evoquant.space import plan_hash

OnRecord = Callable[[Record, bool], None]


class Evaluations:
    """Plans in, journal records out, in the order of the plans.

    A plan that fails is a record with the reason. Only what stops the whole run (a journal that cannot be written, a
    cancellation) is raised.

    In a race a plan stops at the first look at which it is beaten. That is decided from its scores and the front at
    the start of the batch alone, so the answer is the same in whatever order plans are evaluated, and if the journal
    has more of its scores than the race wants, or fewer.

    Args:
        executor: Where they run.
        journal: The journal of the run.
        architecture: The one that the plans are for, where the run has several: part of the keys of their records, for
            models that differ in resolution or weights alone have equal plans.
    """

    def __init__(self, executor: Executor, journal: Journal, architecture: str | None = None) -> None:
        self._executor = executor
        self._journal = journal
        self._architecture = architecture

    def key(self, plan: Plan) -> str:
        """The ``phenotype`` of the record of a plan."""
        return plan_hash(plan) if self._architecture is None else f"{self._architecture}:{plan_hash(plan)}"

    async def of(
        self, plans: Sequence[Plan], *, split: str, on_record: OnRecord | None = None, race: Race | None = None
    ) -> list[Record]:
        """Evaluate plans on the named image set, at most ``executor.size`` at a time.

        Args:
            plans: The plans; equal ones are evaluated once.
            split: ``selection`` or ``test``.
            on_record: Called for each record as it is finished, with whether it came from the journal.
            race: Which plans may stop early; None evaluates all on all images.

        Raises:
            RunError: If the journal cannot be written.
        """
        keys = [self.key(plan) for plan in plans]
        distinct = dict(zip(keys, plans, strict=True))
        async with AioPool(size=self._executor.size) as pool:
            try:
                futures = {
                    key: await pool.spawn(self._one(key, plan, split, on_record, race))
                    for key, plan in distinct.items()
                }
                if futures:
                    await asyncio.wait(futures.values())
            except asyncio.CancelledError:
                self._executor.stop()
                raise
        failures = [error for future in futures.values() if (error := future.exception()) is not None]
        if failures:  # all are asked for, or asyncio would print the others
            raise failures[0]
        records = {key: future.result() for key, future in futures.items()}
        return [records[key] for key in keys]

    async def _one(self, key: str, plan: Plan, split: str, on_record: OnRecord | None, race: Race | None) -> Record:
        known = self._journal.get(key, split=split)
        record = known or _unseen(key, plan, split)
        answer = None
        for look in race.looks if race is not None else ():
            record = await self._grown(record, plan, look)
            scores = _scores(record)[:look]
            if len(scores) == look and race is not None and race.estimates(plan, scores) is not None:
                answer = _with(record, "stopped", scores)
                break
        else:
            answer = record = await self._grown(record, plan, None)
        if record is not known:
            self._journal.add(record)
        if on_record is not None:
            on_record(answer, record is known)
        return answer

    async def _grown(self, record: Record, plan: Plan, images: int | None) -> Record:
        """The record with the scores of so many images, all if None; as it is if it has them or can have no more."""
        seen = len(_scores(record))
        if record.status != "stopped" or (images is not None and images <= seen):
            return record
        started = time.perf_counter()
        try:
            more = await self._executor.evaluate(plan, split=record.split, images=slice(seen, images))
            scores = np.concatenate([_scores(record), more])
            grown = _with(record, "done" if images is None else "stopped", scores)
        except RunError:
            raise
        except (EvoQuantError, RuntimeError, ValueError, MemoryError) as error:
            grown = replace(record, status="failed", result=None, reason=f"{type(error).__name__}: {error}")
        return replace(grown, seconds=record.seconds + time.perf_counter() - started)


def _unseen(key: str, plan: Plan, split: str) -> Record:
    """The record of a plan that has seen no image."""
    choices = {name: config.to_dict() for name, config in plan.items()}
    return Record(key, split, "stopped", choices, result=None, scores=b"", reason=None, seconds=0.0)


def _scores(record: Record) -> Scores:
    return np.frombuffer(record.scores, dtype=IMAGE_SCORE)


def _with(record: Record, status: Literal["done", "stopped"], scores: Scores) -> Record:
    """The record with these scores, of which there is at least one, and what they sum up to."""
    result = accuracy_of(scores).to_dict()
    return replace(record, status=status, result=result, scores=scores.tobytes(), reason=None)
