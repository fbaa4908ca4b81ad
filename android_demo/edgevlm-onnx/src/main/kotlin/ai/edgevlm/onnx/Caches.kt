package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.ModelSpec
import ai.edgevlm.bundle.State
import ai.edgevlm.generate.Cancellation
import ai.edgevlm.layout.FloatTensor
import ai.edgevlm.layout.LongTensor
import ai.edgevlm.layout.Rows
import ai.edgevlm.layout.Tensor
import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** What a decoder's graphs keep between calls. */
internal interface Cache : AutoCloseable {
    var position: Int

    /** For so many in all; throws ContextFull beyond the context length. */
    fun makeRoom(positions: Int)

    /** Append positions; logits after the last one. [inputs]: what else the graph takes. */
    fun run(embeds: Rows, inputs: Map<String, Tensor>, cancellation: Cancellation): FloatArray

    /** The overwritten states after the last position. */
    fun copied(): Map<String, FloatArray>

    /** Hold [length] positions, after which [copied] were given. */
    fun put(length: Int, copied: Map<String, FloatArray>)
}

internal fun checkRoom(positions: Int, spec: ModelSpec) {
    val limit = spec.contextLength
    if (positions <= limit) return
    throw EdgeVLMException.ContextFull(
        "The conversation would take $positions positions and the model's context holds $limit: start a new one, or ask for " +
            "less.",
        positions, limit,
    )
}

private fun graphFor(graphs: List<Graph>, positions: Int): Graph =
    if (graphs.size > 1 && positions >= PREFILL_POSITIONS) graphs[1] else graphs[0]

/** A second decoder graph for prompts pays from here on. */
private const val PREFILL_POSITIONS = 16

private fun fed(embeds: Rows, total: Int, inputs: Map<String, Tensor>): Map<String, Tensor> = inputs + mapOf(
    "inputs_embeds" to FloatTensor(intArrayOf(1, embeds.count, embeds.width), embeds.values),
    "attention_mask" to LongTensor(intArrayOf(1, total), LongArray(total) { 1L }),
)

/** Numbers of a state with so many [positions] where it grows. */
private fun State.shape(positions: Int): LongArray =
    longArrayOf(1L) + shape.map { (it ?: positions).toLong() }

private fun count(shape: LongArray): Long = shape.fold(1L, Math::multiplyExact)

/**
 * One buffer per growing state, given as past and pinned as present: GroupQueryAttention appends in place.
 *
 * A buffer starts at the positions that the first call needs, rounded up to [ROUND], and doubles when it is full, up to
 * the context length. Forgetting is free: the kernel reads as far as the attention mask is long. A state that is
 * replaced has two buffers, which take turns as past and as present.
 */
internal class SharedCache(
    private val environment: OrtEnvironment,
    private val spec: ModelSpec,
    private val graphs: List<Graph>,
) : Cache {
    private class Buffer(val memory: ByteBuffer, val tensor: OnnxTensor)

    override var position = 0
    private var capacity = 0
    private val inputs = Inputs(environment)
    private val buffers = HashMap<String, Buffer>()
    private val replaced = spec.states.filter { it.kind == State.Kind.REPLACE }
    private val turns = replaced.associateTo(HashMap()) { it.name to (buffer(it, 0) to buffer(it, 0)) }
    private val logits = memory(4L * spec.vocabSize)
    private val logitsTensor =
        environment.tensor(logits, logits.capacity(), OnnxJavaType.FLOAT, longArrayOf(1, 1, spec.vocabSize.toLong()))

    override fun makeRoom(positions: Int) {
        if (positions > capacity) grow(positions)
    }

    override fun run(embeds: Rows, inputs: Map<String, Tensor>, cancellation: Cancellation): FloatArray {
        val total = position + embeds.count
        makeRoom(total)
        if (position == 0) turns.values.forEach { (past, _) -> past.memory.fill(0f) }
        val pinned = HashMap<String, OnnxTensor>()
        pinned["logits"] = logitsTensor
        for ((name, buffer) in buffers) pinned["present.$name"] = buffer.tensor
        for ((name, turn) in turns) pinned["present.$name"] = turn.second.tensor
        this.inputs.use(fed(embeds, total, inputs)) { made ->
            val feeds = HashMap(made)
            for ((name, buffer) in buffers) feeds["past_key_values.$name"] = buffer.tensor
            for ((name, turn) in turns) feeds["past_key_values.$name"] = turn.first.tensor
            graphFor(graphs, embeds.count).run(feeds, emptySet(), pinned, cancellation).close()
        }
        for ((name, turn) in turns.toList()) turns[name] = turn.second to turn.first
        position = total
        return logits.floats()
    }

    override fun copied(): Map<String, FloatArray> = turns.mapValues { (_, turn) -> turn.first.memory.floats() }

    override fun put(length: Int, copied: Map<String, FloatArray>) {
        for ((name, values) in copied) turns.getValue(name).first.memory.view().put(values)
        position = length
    }

    private fun grow(total: Int) {
        checkRoom(total, spec)
        val wanted = maxOf(2L * capacity, (total + ROUND - 1L) / ROUND * ROUND)
        val larger = minOf(wanted, spec.contextLength.toLong()).toInt()
        val before = capacity
        capacity = 0 // until every layer has grown: a failure must not leave a mixture in use
        for (state in spec.states) {
            if (state.kind == State.Kind.REPLACE) continue
            val old = buffers.remove(state.name)
            val buffer = buffer(state, larger)
            if (old != null) {
                copy(state, old.memory, before, buffer.memory, larger)
                old.tensor.close()
            }
            buffers[state.name] = buffer
        }
        capacity = larger
    }

    /** The positions that are held, of each of the axes before the one that grows. */
    private fun copy(state: State, from: ByteBuffer, before: Int, to: ByteBuffer, after: Int) {
        val free = state.shape.indexOf(null)
        val outer = state.shape.take(free).fold(1) { all, axis -> all * axis!! }
        val inner = state.shape.drop(free + 1).fold(state.size) { all, axis -> all * axis!! }
        for (i in 0 until outer) {
            val part = from.duplicate()
            part.position(i * before * inner)
            part.limit(i * before * inner + position * inner)
            to.position(i * after * inner)
            to.put(part)
        }
        to.clear()
    }

    private fun buffer(state: State, positions: Int): Buffer {
        val shape = state.shape(positions)
        val memory = memory(Math.multiplyExact(count(shape), state.size.toLong()))
        val type = if (state.dtype == "int8") OnnxJavaType.INT8 else OnnxJavaType.FLOAT
        return Buffer(memory, environment.tensor(memory, memory.capacity(), type, shape))
    }

    override fun close() {
        buffers.values.forEach { it.tensor.close() }
        turns.values.forEach { (past, present) -> listOf(past, present).forEach { it.tensor.close() } }
        logitsTensor.close()
        buffers.clear()
        turns.clear()
        capacity = 0
    }

    private val State.size: Int get() = if (dtype == "int8") 1 else 4

    private fun ByteBuffer.view() = duplicate().order(ByteOrder.nativeOrder()).also { it.clear() }.asFloatBuffer()

    private fun ByteBuffer.floats(): FloatArray = view().let { view -> FloatArray(view.remaining()).also { view.get(it) } }

    private fun ByteBuffer.fill(value: Float) {
        val view = view()
        while (view.hasRemaining()) view.put(value)
    }

    private companion object {
        const val ROUND = 128 // positions
    }
}

/** Past goes in, past and new come out, a copy for each call: what graphs of standard operators can do. They keep floats. */
internal class PassedCache(
    private val environment: OrtEnvironment,
    private val spec: ModelSpec,
    private val graphs: List<Graph>,
) : Cache {
    override var position = 0
    private val inputs = Inputs(environment)
    private val names = spec.states.map { "present.${it.name}" }.toSet() + "logits"
    private val past = HashMap<String, OnnxTensor>()
    private var last: OrtSession.Result? = null // owns most of `past`
    private val own = ArrayList<OnnxTensor>() // and these are ours

    override fun makeRoom(positions: Int) = checkRoom(positions, spec)

    override fun run(embeds: Rows, inputs: Map<String, Tensor>, cancellation: Cancellation): FloatArray {
        val total = position + embeds.count
        makeRoom(total)
        for (state in spec.states) {
            val known = past[state.name]
            val grows = state.kind == State.Kind.APPEND
            if (position == 0) {
                replace(state, FloatArray(count(state.shape(0)).toInt()), 0)
            } else if (grows && known!!.info.shape[2] > position) {
                replace(state, beginning(known), position)
            }
        }
        val result = this.inputs.use(fed(embeds, total, inputs)) { made ->
            val feeds = HashMap(made)
            for ((name, tensor) in past) feeds["past_key_values.$name"] = tensor
            graphFor(graphs, embeds.count).run(feeds, names, emptyMap(), cancellation)
        }
        free()
        last = result
        for (state in spec.states) past[state.name] = result.get("present.${state.name}").get() as OnnxTensor
        position = total
        return (result.get("logits").get() as OnnxTensor).rows().values
    }

    override fun copied(): Map<String, FloatArray> = spec.states.filter { it.kind == State.Kind.REPLACE }
        .associate { state -> state.name to past.getValue(state.name).rows().values }

    override fun put(length: Int, copied: Map<String, FloatArray>) {
        for (state in spec.states) copied[state.name]?.let { replace(state, it, 0) }
        position = length
    }

    private fun beginning(tensor: OnnxTensor): FloatArray {
        val shape = tensor.info.shape
        val width = shape[3].toInt()
        val values = tensor.rows().values
        val heads = shape[1].toInt()
        val out = FloatArray(heads * position * width)
        for (head in 0 until heads) {
            System.arraycopy(values, head * shape[2].toInt() * width, out, head * position * width, position * width)
        }
        return out
    }

    private fun replace(state: State, values: FloatArray, positions: Int) {
        val memory = memory(maxOf(4L, 4L * values.size)) // an empty tensor, too, lies somewhere
        memory.asFloatBuffer().put(values)
        val tensor = environment.tensor(memory, 4 * values.size, OnnxJavaType.FLOAT, state.shape(positions))
        own += tensor
        past[state.name] = tensor
    }

    private fun free() {
        own.forEach { it.close() }
        own.clear()
        last?.close()
        last = null
        past.clear()
    }

    override fun close() = free()
}
