package ai.edgevlm.onnx

import ai.edgevlm.layout.BoolTensor
import ai.edgevlm.layout.FloatTensor
import ai.edgevlm.layout.LongTensor
import ai.edgevlm.layout.Rows
import ai.edgevlm.layout.Tensor
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** Zeros outside of the heap, which ONNX Runtime reads and writes without a copy. */
internal fun memory(bytes: Long): ByteBuffer =
    ByteBuffer.allocateDirect(Math.toIntExact(bytes)).order(ByteOrder.nativeOrder())

/** Some [bytes] of memory as a tensor, which does not own them. */
internal fun OrtEnvironment.tensor(memory: ByteBuffer, bytes: Int, type: OnnxJavaType, shape: LongArray): OnnxTensor {
    val part = memory.duplicate().order(ByteOrder.nativeOrder())
    part.position(0)
    part.limit(bytes)
    return when (type) {
        OnnxJavaType.FLOAT -> OnnxTensor.createTensor(this, part.asFloatBuffer(), shape)
        OnnxJavaType.INT64 -> OnnxTensor.createTensor(this, part.asLongBuffer(), shape)
        else -> OnnxTensor.createTensor(this, part, shape, type)
    }
}

/** What calls are fed from: one piece of memory for each input, made larger when it has to be. */
internal class Inputs(private val environment: OrtEnvironment) {
    private val kept = HashMap<String, ByteBuffer>()

    /** The tensors of one call, which [call] is given and which are closed behind it. */
    fun <T> use(values: Map<String, Tensor>, call: (Map<String, OnnxTensor>) -> T): T {
        val made = HashMap<String, OnnxTensor>()
        try {
            for ((name, value) in values) made[name] = make(name, value)
            return call(made)
        } finally {
            made.values.forEach { it.close() }
        }
    }

    private fun make(name: String, tensor: Tensor): OnnxTensor {
        val (count, size, type) = when (tensor) {
            is FloatTensor -> Triple(tensor.values.size, 4, OnnxJavaType.FLOAT)
            is LongTensor -> Triple(tensor.values.size, 8, OnnxJavaType.INT64)
            is BoolTensor -> Triple(tensor.values.size, 1, OnnxJavaType.BOOL)
        }
        val bytes = Math.multiplyExact(count, size)
        var memory = kept[name]
        if (memory == null || memory.capacity() < bytes) memory = memory(maxOf(64L, bytes.toLong())).also { kept[name] = it }
        memory.clear()
        when (tensor) {
            is FloatTensor -> memory.asFloatBuffer().put(tensor.values)
            is LongTensor -> memory.asLongBuffer().put(tensor.values)
            is BoolTensor -> for (i in tensor.values.indices) memory.put(i, if (tensor.values[i]) 1 else 0)
        }
        return environment.tensor(memory, bytes, type, LongArray(tensor.shape.size) { tensor.shape[it].toLong() })
    }
}

/** Rows of a tensor's last axis. */
internal fun OnnxTensor.rows(): Rows {
    val buffer = floatBuffer
    val values = FloatArray(buffer.remaining()).also { buffer.get(it) }
    return Rows(values, info.shape.last().toInt())
}
