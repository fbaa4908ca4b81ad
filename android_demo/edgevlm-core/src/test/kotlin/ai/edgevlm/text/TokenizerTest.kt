package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.Vectors
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Assertions.assertTrue
import org.junit.jupiter.api.Test
import org.junit.jupiter.api.assertThrows
import org.junit.jupiter.params.ParameterizedTest
import org.junit.jupiter.params.provider.MethodSource

class TokenizerTest {
    companion object {
        @JvmStatic
        fun cutters(): List<String> = (TextVectors.root["cuts"] as Map<*, *>).keys.map { it as String }

        @JvmStatic
        fun names(): List<String> = (TextVectors.root["tokenizers"] as Map<*, *>).keys.map { it as String }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `ids are the library's`(name: String) {
        val rules = TextVectors.tokenizer(name)
        val texts = TextVectors.root["texts"] as List<*>
        val wanted = (TextVectors.root["encode"] as Map<*, *>)[name] as List<*>
        assertTrue(texts.size == wanted.size && texts.size > 400)
        val wrong = texts.indices.filter { wanted[it] != TextVectors.short(rules.encode(texts[it] as String)) }
        if (wrong.isEmpty()) return
        val text = texts[wrong[0]] as String
        assertEquals(wanted[wrong[0]], TextVectors.short(rules.encode(text)), "${wrong.size} of ${texts.size}, such as '$text'")
    }

    @ParameterizedTest
    @MethodSource("cutters")
    fun `words are the library's`(name: String) {
        val data = (TextVectors.root["tokenizers"] as Map<*, *>)[name]
        val bytes = if (data == null) Vectors.file("edgevlm/assets/default/tokenizer.json").readBytes() else TextVectors.written(data)
        val rules = TokenizerFile.parse(bytes, name, Limits.VOCABULARY)
        val texts = TextVectors.root["texts"] as List<*>
        val wanted = (TextVectors.root["cuts"] as Map<*, *>)[name] as List<*>
        assertEquals(texts.size, wanted.size)
        texts.forEachIndexed { number, text ->
            val codes = rules.normalize(text as String).codePointArray()
            val lengths = Ints()
            if (codes.isNotEmpty()) rules.cuts.cut(Piece(codes, 0, codes.size, true)) { lengths.add(it.end - it.start) }
            assertEquals(wanted[number], TextVectors.short(lengths.toArray()), "'$text'")
        }
    }

    @ParameterizedTest
    @MethodSource("names")
    fun `texts are the library's and pieces are Python's`(name: String) {
        val rules = TextVectors.tokenizer(name)
        for (case in (TextVectors.root["decode"] as Map<*, *>)[name] as List<*>) {
            val (ids, text, special, pieces, end) = case as List<*>
            val given = TextVectors.ints(ids)
            assertEquals(text, rules.decode(given), "$ids")
            assertEquals(special, rules.decode(given, special = true), "$ids")
            val stream = rules.stream()
            assertEquals(pieces, given.map { stream.push(it) }, "$ids")
            assertEquals(end, stream.finish(), "$ids")
        }
    }

    @Test
    fun `half a pair is refused`() {
        for (text in listOf("\ud83d", "a\ude00", "\ude00\ud83d")) {
            assertThrows<EdgeVLMException> { TextVectors.tokenizer("smol").encode(text) }
        }
    }
}
