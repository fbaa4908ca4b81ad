package ai.edgevlm.text

/** An entry of `added_tokens` in tokenizer.json. */
internal class AddedToken(
    val content: String,
    val id: Int,
    val special: Boolean,
    val normalized: Boolean,
    val singleWord: Boolean,
    val takesBefore: Boolean, // lstrip: white space before it belongs to it
    val takesBehind: Boolean, // rstrip
)

/** Finds the longest of several words at a place. */
internal class Words(words: Iterable<String>) {
    private class Node {
        var end = false
        val next = HashMap<Char, Node>()
    }

    private val root = Node()

    init {
        for (word in words) {
            var node = root
            for (char in word) node = node.next.getOrPut(char) { Node() }
            node.end = word.isNotEmpty()
        }
    }

    /** Where the longest word that begins at [at] ends; -1 where none does. */
    fun match(text: String, at: Int): Int {
        var node = root
        var place = at
        var found = -1
        while (place < text.length) {
            node = node.next[text[place++]] ?: break
            if (node.end) found = place
        }
        return found
    }
}

/** Cuts a text at added tokens: first as it is, then what is left in its normalized form, as the library does. */
internal class AddedTokens(tokens: List<AddedToken>, private val normalize: (String) -> String) {
    private val plain = Table(tokens.filter { !it.normalized }) { it }
    private val normalized = Table(tokens.filter { it.normalized }, normalize)

    /** Calls [text] with each part of normalized text and whether it begins where all begins, [token] with each id. */
    fun split(whole: String, text: (String, Boolean) -> Unit, token: (Int) -> Unit) {
        plain.split(whole, { part, first ->
            normalized.split(normalize(part), { inner, start -> if (inner.isNotEmpty()) text(inner, first && start) }, token)
        }, token)
    }

    private class Table(tokens: List<AddedToken>, written: (String) -> String) {
        private val byContent = LinkedHashMap<String, AddedToken>().also { found ->
            for (each in tokens) written(each.content).let { if (it.isNotEmpty() && it !in found) found[it] = each }
        }
        private val words = Words(byContent.keys)

        /** Special tokens are found, and then read as text: a user's text never holds them. */
        fun split(text: String, part: (String, Boolean) -> Unit, token: (Int) -> Unit) {
            var done = 0
            var at = 0
            while (byContent.isNotEmpty() && at < text.length) {
                var end = words.match(text, at)
                if (end < 0) {
                    at++
                    continue
                }
                val found = byContent.getValue(text.substring(at, end))
                var start = at
                at = end
                if (found.special || (found.singleWord && (wordBefore(text, start) || wordAt(text, end)))) continue
                if (found.takesBefore) start = maxOf(blanksBefore(text, start), done)
                if (found.takesBehind) end = blanksBehind(text, end)
                if (done < start) part(text.substring(done, start), done == 0)
                token(found.id)
                done = end
            }
            if (done < text.length) part(text.substring(done), done == 0)
        }

        private fun wordBefore(text: String, at: Int) = at > 0 && Unicode.has(text.codePointBefore(at), Unicode.WORD)

        private fun wordAt(text: String, at: Int) = at < text.length && Unicode.has(text.codePointAt(at), Unicode.WORD)

        private fun blanksBefore(text: String, from: Int): Int {
            var at = from
            while (at > 0 && Unicode.has(text.codePointBefore(at), Unicode.BLANK)) at -= Character.charCount(text.codePointBefore(at))
            return at
        }

        private fun blanksBehind(text: String, from: Int): Int {
            var at = from
            while (at < text.length && Unicode.has(text.codePointAt(at), Unicode.BLANK)) at += Character.charCount(text.codePointAt(at))
            return at
        }
    }
}
