package ai.edgevlm.image

/** Natural logarithms. */
internal object Logarithm {
    fun of(x: Double): Double = StrictMath.log(x)
}
