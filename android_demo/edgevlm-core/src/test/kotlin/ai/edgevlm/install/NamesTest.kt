package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Vectors
import org.junit.jupiter.api.Assertions.assertEquals
import org.junit.jupiter.api.Test

/** Names that Python takes, and no others. */
class NamesTest {
    /** One value a line; it holds halves of surrogates, which the SDK's own reader refuses. */
    private val lines = Vectors.file("android_demo/vectors/names.json").readLines()

    private fun string(line: String): String =
        Regex("\\\\(?:u([0-9a-f]{4})|(.))").replace(line.trim().removeSuffix(",").removeSurrounding("\"")) { match ->
            val (code, char) = match.destructured
            if (code.isNotEmpty()) code.toInt(16).toChar().toString() else mapOf("n" to "\n", "t" to "\t")[char] ?: char
        }

    private fun takes(vararg names: String): Boolean = try {
        Names.check(names.toList())
        true
    } catch (_: EdgeVLMException.BundleError) {
        false
    }

    /** The lists of a key, of so many items each. */
    private fun rows(key: String, size: Int): List<List<String>> =
        lines.drop(lines.indexOf("\"$key\": [") + 1).chunked(size + 2).takeWhile { it.first() == "[" }.map { row -> row.subList(1, size + 1).map(::string) }

    @Test
    fun `names are taken as in Python`() {
        val rows = rows("names", 2)
        assertEquals(true, rows.size > 150)
        for ((name, good) in rows) assertEquals(good.toBoolean(), takes(name), name)
    }

    @Test
    fun `names that are one where case does not count`() {
        val rows = rows("pairs", 3)
        assertEquals(true, rows.size > 15)
        for ((one, other, good) in rows) assertEquals(good.toBoolean(), takes(one, other), "$one $other")
    }
}
