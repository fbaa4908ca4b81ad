package ai.edgevlm.layout

import ai.edgevlm.EdgeVLMException

/** What a graph is fed: numbers of some [shape], the last axis fastest. */
public sealed interface Tensor {
    public val shape: IntArray
}

public class FloatTensor(override val shape: IntArray, public val values: FloatArray) : Tensor

public class LongTensor(override val shape: IntArray, public val values: LongArray) : Tensor

public class BoolTensor(override val shape: IntArray, public val values: BooleanArray) : Tensor

/** count * each numbers of an input, before they are made; [what] they are. */
internal fun limited(count: Int, each: Int, what: String): Int {
    if (count.toLong() * each <= MOST_VALUES) return count * each
    throw EdgeVLMException.Unsupported(
        "$what would be ${count.toLong() * each} numbers, at most $MOST_VALUES are made: give less text or smaller " +
            "pictures.",
    )
}

private const val MOST_VALUES = 1 shl 28 // of a float32: a gibibyte
