"""The gate on what only CoreML packages have: functions for several contexts, and operations with names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np

from edgevlm.bundle.manifest import Bundle, target_of
from edgevlm.bundle.targets import CoreMLTarget
from edgevlm.inputs.preprocess import normalize
from edgevlm.runtimes.base import EngineOptions
from edgevlm.verify.reference import Reference, cosine
from edgevlm.verify.report import Row, at_least
from edgevlm.verify.runtime import Case

STEPS = 4  # tokens of a context that is not the longest


def other_contexts(bundle: Bundle, reference: Reference, case: Case, bound: float) -> Iterator[Row]:
    """The functions of shorter contexts: the same weights, in graphs that no other check calls.

    bound: the least cosine of logits, over half a context of prompt at most and a few steps after it.
    """
    from edgevlm.runtimes.coreml.runtime import CoreMLDecoder

    functions = target_of(bundle, CoreMLTarget).decoder.functions.values()
    for context in sorted({function.context for function in functions})[:-1]:
        prompt = reference.prompt(case.ids, case.layout, case.views)[: context // 2]
        with closing(CoreMLDecoder(bundle, EngineOptions(), context=context)) as decoder:
            steps = [decoder.forward(prompt, case.layout)]
            while len(steps) < STEPS:
                steps.append(decoder.step(int(steps[-1].argmax())))
        logits = np.stack(steps)
        low = cosine(logits, reference.logits(prompt, reference.embed(logits.argmax(-1)[:-1]), case.layout))
        yield at_least("coreml", f"logits with context {context}, cosine", low, bound)
        if not low >= bound:
            yield first_operation(bundle, reference, case, context)


def first_operation(bundle: Bundle, reference: Reference, case: Case, context: int | None = None) -> Row:
    """Where a package leaves the reference, by the name of its operation. context: None is the longest."""
    from edgevlm.runtimes.mil.trace import find_divergence

    prompt, view = reference.prompt(case.ids, case.layout, case.views), normalize(case.views[0], bundle.image_spec)
    found = find_divergence(bundle, reference.weights, view, prompt, context=context, layout=case.layout)
    note = str(found) if found else "none in fp32 storage: precision, not the graph"
    return Row("coreml", "first operation that differs", 0, None, True, note, where=found.name if found else "")
