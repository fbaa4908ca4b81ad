package ai.edgevlm.layout

import ai.edgevlm.Limits
import ai.edgevlm.image.Logarithm
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec

/**
 * Rotary position embedding (arXiv 2104.09864) of split halves, over one or several position axes: `decoder.ropes` of
 * the manifest, whose field names are these with underscores.
 */
public data class Rope(
    val theta: Double,
    /** Values of a head that are rotated. */
    val size: Int,
    val scaling: Scaling? = null,
    /** Frequencies per position axis; none is one axis. */
    val sections: List<Int> = emptyList(),
    /** The axes take turns; otherwise one run of frequencies after the other. */
    val interleaved: Boolean = false,
    val factor: Double = 1.0,
    val divisors: List<Double> = emptyList(),
    val gain: Double = 1.0,
    /** The first frequencies that are more than 0; null: all. */
    val turning: Int? = null,
) {
    /** Long wavelengths are stretched by [factor], short ones kept, those between blended (Llama 3.1, YaRN). */
    public data class Scaling(
        val factor: Double,
        val lowFreqFactor: Double,
        val highFreqFactor: Double,
        val originalContext: Int,
        val kind: String = "llama3",
    )

    init {
        val half = size / 2
        check(size in 2..Limits.HEAD_DIM && size % 2 == 0, "size", "an even number up to ${Limits.HEAD_DIM}") { size }
        check(theta > 0 && theta <= Limits.REAL, "theta", "a positive number") { theta }
        val axes = sections.size == 0 || sections.size in Limits.POSITION_AXES..Limits.POSITION_AXES + 1
        val whole = sections.isEmpty() || sections.sumOf { it.toLong() } == half.toLong()
        check(axes && whole && sections.all { it >= 0 }, "sections", "3 or 4 numbers, $half together") { sections }
        check(!interleaved || sections.size == 3, "interleaved", "false but on three axes") { interleaved }
        check(factor > 0, "factor", "a positive number") { factor }
        check(divisors.isEmpty() || divisors.size == half, "divisors", "$half numbers") { divisors.size }
        check(turning == null || turning in 0..half, "turning", "0 to $half") { turning }
        check(scaling == null || scaling.kind in KINDS, "scaling.kind", KINDS.joinToString(" or ")) { scaling?.kind }
    }

    private inline fun check(good: Boolean, name: String, expected: Any, found: () -> Any?) {
        checkSpec(good, "manifest", "spec.decoder.ropes.$name", expected, found)
    }

    public val axes: Int get() = maxOf(1, sections.size)

    /** Radians per position of each frequency, scaled, in float32. */
    private val rates: FloatArray by lazy {
        val found = plainRates()
        val factors = scaling?.let { factors(it, found) }
        for (i in found.indices) {
            if (factors != null) found[i] = found[i] / factors[i]
            found[i] = found[i] / factor.toFloat()
            if (divisors.isNotEmpty()) found[i] = found[i] / divisors[i].toFloat()
        }
        found
    }

    private fun plainRates(): FloatArray {
        val half = size / 2
        val found = frequencies(theta, FloatArray(half) { (2 * it).toFloat() / size.toFloat() })
        if (turning != null) java.util.Arrays.fill(found, turning, half, 0f)
        return found
    }

    /** The position axis that each frequency takes. */
    private val axisOf: IntArray by lazy {
        val found = IntArray(size / 2)
        if (interleaved) { // time, row, column, time, row, column ..., then time for what is left
            for (axis in 1..2) {
                for (i in axis until minOf(sections[axis] * 3, found.size) step 3) found[i] = axis
            }
        } else {
            var at = 0
            sections.forEachIndexed { axis, count -> repeat(count) { found[at++] = axis } }
        }
        found
    }

    /**
     * Cosines and sines, (n, size / 2) each, of positions: of each axis, one number per token.
     *
     * Angles are float32 products, as in transformers; sines and cosines are rounded from double.
     */
    public fun rows(positions: Array<LongArray>): Pair<FloatArray, FloatArray> {
        val half = size / 2
        val count = positions[0].size
        val cos = FloatArray(limited(count, half, "A prompt's positions"))
        val sin = FloatArray(cos.size)
        val gain = gain.toFloat()
        for (token in 0 until count) {
            for (i in 0 until half) {
                val angle = (positions[axisOf[i]][token].toFloat() * rates[i]).toDouble()
                cos[token * half + i] = StrictMath.cos(angle).toFloat() * gain
                sin[token * half + i] = StrictMath.sin(angle).toFloat() * gain
            }
        }
        return cos to sin
    }

    /** What scaling divides each frequency by: transformers' _compute_llama3_parameters, _compute_yarn_parameters. */
    private fun factors(scaling: Scaling, rates: FloatArray): FloatArray {
        val low = scaling.lowFreqFactor
        val high = scaling.highFreqFactor
        val first = maxOf(Math.floor(place(scaling, high)), 0.0)
        val last = minOf(Math.ceil(place(scaling, low)), size - 1.0)
        val span = (if (last - first != 0.0) last - first else 0.001).toFloat()
        return FloatArray(rates.size) { i ->
            val kept = if (scaling.kind == "yarn") {
                1 - clipped((i.toFloat() - first.toFloat()) / span)
            } else {
                val turns = scaling.originalContext.toFloat() * rates[i] / (2 * Math.PI).toFloat()
                clipped((turns - low.toFloat()) / (high - low).toFloat())
            }
            1 / ((1 - kept) / scaling.factor.toFloat() + kept)
        }
    }

    private fun clipped(x: Float): Float = minOf(maxOf(x, 0f), 1f)

    /** Which frequency turns so often within the original context, counted from the fastest. */
    private fun place(scaling: Scaling, turns: Double): Double =
        size * Logarithm.of(scaling.originalContext / (turns * 2 * Math.PI)) / (2 * Logarithm.of(theta))

    internal companion object {
        private val KINDS = listOf("llama3", "yarn")

        fun read(data: Any?, where: String): Rope = Fields.read(data, where) {
            Rope(
                theta = real("theta"),
                size = int("size"),
                scaling = optional("scaling", ::readScaling),
                sections = get("sections", emptyList()) { list, at -> Fields.list(list, at, Fields::int) },
                interleaved = flag("interleaved", false),
                factor = real("factor", 1.0),
                divisors = get("divisors", emptyList()) { list, at -> Fields.list(list, at, Fields::real) },
                gain = real("gain", 1.0),
                turning = optional("turning", Fields::int),
            )
        }

        private fun readScaling(data: Any?, where: String): Scaling = Fields.read(data, where) {
            Scaling(
                real("factor"), real("low_freq_factor"), real("high_freq_factor"), int("original_context"),
                text("kind", "llama3"),
            )
        }

        /** 1 / theta ^ exponents, rounded twice to float32, as transformers does. */
        fun frequencies(theta: Double, exponents: FloatArray): FloatArray {
            val base = theta.toFloat().toDouble()
            return FloatArray(exponents.size) { 1f / StrictMath.pow(base, exponents[it].toDouble()).toFloat() }
        }
    }
}
