"""Evaluating many plans: answered from the journal where it knows them, bounded in number where it does not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from asyncio_pool import AioPool

from evoquant.errors import EvoQuantError, RunError
from evoquant.evaluate import Accuracy, Plan
from evoquant.run.executors import Executor
from evoquant.run.journal import Journal, Record
from evoquant.space import plan_hash

OnRecord = Callable[[Record, bool], None]


class Evaluations:
    """Plans in, journal records out, in the order of the plans.

    A plan that fails is a record with the reason. Only what stops the whole run (a journal that cannot be written, a
    cancellation) is raised.
    """

    def __init__(self, executor: Executor, journal: Journal) -> None:
        self._executor = executor
        self._journal = journal

    async def of(self, plans: Sequence[Plan], *, split: str, on_record: OnRecord | None = None) -> list[Record]:
        """Evaluate plans on the named image set, at most ``executor.size`` at a time.

        Args:
            plans: The plans; equal ones are evaluated once.
            split: ``selection`` or ``test``.
            on_record: Called for each record as it is finished, with whether it came from the journal.

        Raises:
            RunError: If the journal cannot be written.
        """
        keys = [plan_hash(plan) for plan in plans]
        distinct = dict(zip(keys, plans, strict=True))
        async with AioPool(size=self._executor.size) as pool:
            try:
                futures = {
                    key: await pool.spawn(self._one(key, plan, split, on_record)) for key, plan in distinct.items()
                }
                if futures:
                    await asyncio.wait(futures.values())
            except asyncio.CancelledError:
                self._executor.stop()
                raise
        records = {key: future.result() for key, future in futures.items()}
        return [records[key] for key in keys]

    async def _one(self, key: str, plan: Plan, split: str, on_record: OnRecord | None) -> Record:
        known = self._journal.get(key, split=split)
        record = known or await self._evaluate(key, plan, split)
        if known is None:
            self._journal.add(record)
        if on_record is not None:
            on_record(record, known is not None)
        return record

    async def _evaluate(self, key: str, plan: Plan, split: str) -> Record:
        started = time.perf_counter()
        result: dict[str, Any] | None = None
        reason = None
        try:
            accuracy: Accuracy = await self._executor.evaluate(plan, split=split)
            result = accuracy.to_dict()
        except RunError:
            raise
        except (EvoQuantError, RuntimeError, ValueError, MemoryError) as error:
            reason = f"{type(error).__name__}: {error}"
        return Record(
            phenotype=key,
            split=split,
            status="done" if reason is None else "failed",
            plan={name: config.to_dict() for name, config in plan.items()},
            result=result,
            reason=reason,
            seconds=time.perf_counter() - started,
        )
