package ai.edgevlm.onnx

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.ModelSpec
import ai.edgevlm.generate.Cancellation
import ai.edgevlm.generate.Decoder
import ai.edgevlm.generate.Encoder
import ai.edgevlm.generate.Stopped
import ai.edgevlm.generate.part
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.RgbImage
import ai.edgevlm.layout.Layout
import ai.edgevlm.layout.LongTensor
import ai.edgevlm.layout.Rows
import ai.edgevlm.layout.nextPart
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment

/** A view per call: peak memory is one view's. */
internal class OrtEncoder(
    environment: OrtEnvironment,
    private val graph: Graph,
    private val spec: ModelSpec,
    private val image: ImageSpec,
) : Encoder {
    private val inputs = Inputs(environment)

    override fun encode(view: RgbImage, cancellation: Cancellation): Rows =
        inputs.use(spec.tower.feeds(listOf(view), image)) { feeds ->
            graph.run(feeds, setOf("image_features"), emptyMap(), cancellation)
                .use { (it.get("image_features").get() as OnnxTensor).rows() }
        }

    override fun close() = graph.close()
}

/** [graphs]: the decoder, and behind it the prompt's own where there is one. */
internal class OrtDecoder(
    environment: OrtEnvironment,
    private val table: Graph,
    private val graphs: List<Graph>,
    private val cache: Cache,
    private val spec: ModelSpec,
) : Decoder {
    private val inputs = Inputs(environment)
    private val never = Cancellation()
    override var layout = Layout(0)
        private set
    override val position: Int get() = cache.position

    override fun embed(ids: IntArray): Rows {
        val rows = LongTensor(intArrayOf(1, ids.size), LongArray(ids.size) { ids[it].toLong() })
        return inputs.use(mapOf("input_ids" to rows)) { feeds ->
            table.run(feeds, setOf("inputs_embeds"), emptyMap(), never)
                .use { (it.get("inputs_embeds").get() as OnnxTensor).rows() }
        }
    }

    override fun forward(embeds: Rows, layout: Layout?, cancellation: Cancellation): FloatArray {
        layout?.let { this.layout = it }
        val start = cache.position
        var first = start
        val stop = start + embeds.count
        cache.makeRoom(stop)
        val parts = maxOf(1, (embeds.count + PROMPT_PART - 1) / PROMPT_PART)
        val most = (embeds.count + parts - 1) / parts // parts of one size: a short last one would cost as much as a longer
        while (true) {
            val end = nextPart(this.layout, spec.positions.mask, first, stop, most)
            val logits = run(embeds.part(first - start, end - start), cancellation)
            if (end == stop) return logits
            first = end
            if (cancellation.requested) throw Stopped()
        }
    }

    private fun run(embeds: Rows, cancellation: Cancellation): FloatArray {
        val more = spec.positions.inputs(layout, cache.position, embeds.count, padded = true)
        return cache.run(embeds, more, cancellation)
    }

    override fun rewind(length: Int) {
        if (length in 1 until position && spec.replaces) {
            throw EdgeVLMException(
                "This model's states cannot go back from position $position to $length: they are overwritten at each call; " +
                    "start anew and give the whole prompt.",
            )
        }
        cache.position = maxOf(0, minOf(position, length))
        if (position == 0) layout = Layout(0)
    }

    override fun copied(): Map<String, FloatArray> = cache.copied()

    override fun goBack(length: Int, copied: Map<String, FloatArray>) = cache.put(length, copied)

    override fun close() {
        cache.close()
        (graphs + table).forEach { it.close() }
    }

    private companion object {
        /**
         * Positions of a prompt in one call. A call's scores of all heads are held at once and those of later keys are
         * computed, too: in parts they stay in the processor's cache, and half of them are never made.
         */
        const val PROMPT_PART = 256
    }
}
