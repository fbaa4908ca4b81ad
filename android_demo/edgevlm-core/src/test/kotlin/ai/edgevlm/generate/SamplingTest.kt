package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import org.junit.jupiter.api.Assertions.assertArrayEquals
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows

/** Held to numbers that numpy gave; whole answers are held to Python's in edgevlm-onnx. */
class SamplingTest {
    @Test
    fun `the generator is numpy's`() {
        val known = mapOf(
            0L to listOf(0.6369616873214543, 0.2697867137638703, 0.04097352393619469),
            7L to listOf(0.625095466604667, 0.8972138009695755, 0.7756856902451935),
            (1L shl 40) + 3 to listOf(0.7736560850714245, 0.9958573802012665, 0.47317891460392636),
            Long.MAX_VALUE to listOf(0.1754661243027813, 0.4699286514015091, 0.8250374441530688),
        )
        for ((seed, numbers) in known) {
            val random = Pcg64(seed)
            assertEquals(numbers, List(3) { random.next() })
        }
    }

    @Test
    fun `top-k keeps ties, and top-p the token that crosses it`() {
        val logits = floatArrayOf(1f, 2f, 2f, -1f, 0.5f, 3f)
        fun check(temperature: Double, topK: Int, topP: Double, vararg wanted: Double) =
            assertArrayEquals(wanted, probabilities(logits, temperature, topK, topP), 1e-15)
        check(1.0, 0, 1.0, 0.06864602586035237, 0.18659924469212555, 0.18659924469212555, 0.009290229352878626, 0.04163591935173002, 0.5072293360507878)
        check(0.7, 2, 1.0, 0.0, 0.16200277200628296, 0.16200277200628296, 0.0, 0.0, 0.6759944559874341)
        check(1.3, 0, 0.6, 0.0, 0.0, 0.316645529812217, 0.0, 0.0, 0.683354470187783)
        check(1.0, 4, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)
    }

    @Test
    fun `options out of their range are refused`() {
        val wrong = listOf<() -> AskOptions>(
            { AskOptions(maxTokens = 0) }, { AskOptions(topK = -1) }, { AskOptions(seed = -1) }, { AskOptions(temperature = -0.1) },
            { AskOptions(temperature = Double.NaN) }, { AskOptions(topP = 0.0) }, { AskOptions(topP = 1.1) },
            { AskOptions(repetitionPenalty = 0.0) }, { AskOptions(repetitionPenalty = Double.POSITIVE_INFINITY) },
            { AskOptions(stop = listOf("")) }, { AskOptions(stop = List(17) { "a" }) }, { AskOptions(stop = listOf("a".repeat(257))) },
        )
        for (make in wrong) assertTrue(assertThrows<EdgeVLMException> { make() }.message!!.isNotEmpty())
    }
}
