package ai.edgevlm.json

import java.math.BigInteger
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.ValueSource

class JsonTest {
    private fun parse(text: String, largest: Int = 1 shl 20) = Json.parse(text.toByteArray(), largest)

    @Test
    fun `values are read`() {
        val text = """ {"a": [1, -2.5, 1e3, true, false, null], "b": {"c": "x\n\"\\\/\u00e9\ud83d\ude00é😀"}} """
        val expected = mapOf("a" to listOf(1L, -2.5, 1000.0, true, false, null), "b" to mapOf("c" to "x\n\"\\/é😀é😀"))
        assertEquals(expected, parse(text))
        assertEquals(BigInteger("123456789012345678901234567890"), parse("123456789012345678901234567890"))
        assertEquals(Long.MIN_VALUE, parse("-9223372036854775808"))
        assertEquals(0L, parse("-0"))
    }

    @ParameterizedTest
    @ValueSource(
        strings = [
            "", " ", "{", "[", "[1", "[1,]", "{\"a\"}", "{\"a\":}", "{\"a\":1,}", "{a:1}", "'a'", "01", "+1", ".5", "1.", "1e", "-",
            "tru", "nul", "NaN", "Infinity", "-Infinity", "1e999", "\"a", "\"\\x\"", "\"\\u12\"", "\"\\u+123\"", "\"\n\"", "1 2",
            "{\"a\":1,\"a\":2}", "\"\\ud83d\"", "\"\\ude00\"", "\"\\ud83dx\"", "\"\\ude00\\ud83d\"", "\uFEFF1", "[1]x", "\u00a01",
        ],
    )
    fun `what is no JSON is refused`(text: String) {
        assertThrows<BadJson> { parse(text) }
    }

    @Test
    fun `limits hold`() {
        assertEquals(2, parse("[[" + "]]", 64).toString().length / 2)
        parse("[".repeat(64) + "]".repeat(64))
        assertThrows<BadJson> { parse("[".repeat(65) + "]".repeat(65)) }
        assertThrows<BadJson> { parse("[".repeat(100_000), 10_000_000) }
        parse("9".repeat(308))
        assertThrows<BadJson> { parse("9".repeat(309)) }
        assertThrows<BadJson> { parse("\"${"a".repeat(100)}\"", 100) }
        assertThrows<BadJson> { parse("[[],[],[],[]]", 64) }
        assertThrows<BadJson> { Json.parse(byteArrayOf('"'.code.toByte(), 0xC0.toByte(), 0x80.toByte(), '"'.code.toByte()), 64) }
        val half = byteArrayOf('"'.code.toByte(), 0xED.toByte(), 0xA0.toByte(), 0x80.toByte(), '"'.code.toByte())
        assertThrows<BadJson> { Json.parse(half, 64) }
    }
}
