package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import java.text.Normalizer
import java.util.Locale

/** Names that every system can have, below their folder: Python's `edgevlm/io/names.py`. */
internal object Names {
    /** What Windows takes for a device in any folder, with any ending; superscripts count as digits there. */
    private val device = Regex("(?i)(?:con|prn|aux|nul|conin\\$|conout\\$|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]) *(?:\\..*|$)", RegexOption.DOT_MATCHES_ALL)
    private const val LONGEST = 255

    /** Throws [EdgeVLMException.BundleError] for the first name that is none, or is one with another where case does not count. */
    fun check(names: Iterable<String>) {
        val seen = HashMap<String, String>()
        for (name in names) {
            val wrong = wrong(name)
                ?: seen.put(folded(name), name)?.let { "is one with '${it.take(200)}' where case does not count" }
                ?: continue
            throw EdgeVLMException.BundleError("The manifest names the file '${name.take(200)}', which $wrong: do not use this bundle.")
        }
    }

    /** Why no file may have that name; null where one may. */
    fun wrong(name: String): String? {
        val parts = name.split('/')
        if (name.isEmpty() || name[0] == '/' || ".." in parts || name.any { it in "\\:\u0000" }) return "is outside the bundle"
        for (part in parts) {
            val bad = part.isEmpty() || part == "." || part.last() in ". " || part.any { it < ' ' || it in "<>\"|?*" } || device.matches(part)
            if (bad || halves(part)) return "not every system can have"
            if (part.toByteArray(Charsets.UTF_8).size > LONGEST) return "has a part of over $LONGEST bytes"
        }
        return null
    }

    /** Whether a surrogate stands alone. */
    private fun halves(part: String): Boolean {
        var at = 0
        while (at < part.length) {
            val point = part.codePointAt(at)
            if (point in 0xD800..0xDFFF) return true
            at += Character.charCount(point)
        }
        return false
    }

    private fun folded(name: String): String = normal(normal(name).lowercase(Locale.ROOT).uppercase(Locale.ROOT).lowercase(Locale.ROOT))

    private fun normal(text: String): String = Normalizer.normalize(text, Normalizer.Form.NFC)
}
