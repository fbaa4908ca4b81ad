package ai.edgevlm.layout

/** What a graph is fed: numbers of some [shape], the last axis fastest. */
public sealed interface Tensor {
    public val shape: IntArray
}

public class FloatTensor(override val shape: IntArray, public val values: FloatArray) : Tensor

public class LongTensor(override val shape: IntArray, public val values: LongArray) : Tensor

public class BoolTensor(override val shape: IntArray, public val values: BooleanArray) : Tensor
