package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException

/** A set of code points: categories and flags of [Unicode], and ranges. */
internal class CodeSet {
    private var categories = 0
    private var flags = 0
    private val ranges = Ints()
    private var negated = false
    private var unspaced = false // \S among other things
    private val small = BooleanArray(SMALL)

    fun range(first: Int, last: Int): CodeSet = apply {
        ranges.add(first)
        ranges.add(last)
    }

    fun category(name: String): CodeSet = apply {
        Unicode.CATEGORIES.forEachIndexed { number, each -> if (each.startsWith(name)) categories = categories or (1 shl number) }
    }

    fun flag(flag: Int): CodeSet = apply { flags = flags or flag }

    fun unspaced(): CodeSet = apply { unspaced = true }

    fun negate(): CodeSet = apply { negated = true }

    /** To be called once, behind everything else. */
    fun done(): CodeSet = apply { for (code in 0 until SMALL) small[code] = find(code) }

    operator fun contains(code: Int): Boolean = if (code < SMALL) small[code] else find(code)

    private fun find(code: Int): Boolean {
        val value = Unicode.value(code)
        val found = (categories ushr (value and Unicode.CATEGORY)) and 1 != 0 || value and flags != 0 ||
            (unspaced && value and Unicode.SPACE == 0) || inRanges(code)
        return found != negated
    }

    private fun inRanges(code: Int): Boolean {
        for (i in 0 until ranges.size step 2) if (code >= ranges[i] && code <= ranges[i + 1]) return true
        return false
    }

    private companion object {
        const val SMALL = 256
    }
}

/**
 * Finds what a pre-tokenizer's expression matches, in the form that published tokenizers use: alternatives of characters
 * and classes that repeat, groups that do not, and looks ahead, by the rules of the library's engine (Oniguruma's Ruby
 * syntax). Other forms are refused by name.
 */
internal class Scanner(private val expression: String) {
    private val codes = expression.codePointArray()
    private var at = 0
    private var braced = false
    private var depth = 0
    private val start: Node

    init {
        val first = alternatives(false, End)
        if (at != codes.size) throw unsupported()
        start = first
    }

    /** Calls [found] with the start and end of each match in [text] from [from] to [end]; empty ones are none. */
    fun each(text: IntArray, from: Int, end: Int, found: (Int, Int) -> Unit) {
        val run = Run(text, end, expression)
        var at = from
        while (at < end) {
            val to = start.match(run, at)
            if (to > at) {
                found(at, to)
                at = to
            } else {
                at++
            }
        }
    }

    /** A text, and how much work may still go into it: a hostile expression could take years. */
    private class Run(val text: IntArray, val end: Int, private val expression: String) {
        private var left = STEPS_PER_CHARACTER * (text.size.toLong() + STEPS_PER_CHARACTER)

        fun spend(steps: Int) {
            left -= steps + 1
            if (left < 0) {
                throw EdgeVLMException.Unsupported(
                    "The tokenizer's expression '${expression.take(200)}' takes too long on this text: ask in other words.",
                )
            }
        }
    }

    private abstract class Node {
        abstract fun match(run: Run, at: Int): Int
    }

    private object End : Node() {
        override fun match(run: Run, at: Int): Int = at
    }

    private class Repeat(val set: CodeSet, val least: Int, val most: Int, val possessive: Boolean, val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int {
            val text = run.text
            val limit = if (most > run.end - at) run.end else at + most
            var to = at
            while (to < limit && text[to] in set) to++
            run.spend(to - at)
            if (possessive) return if (to - at < least) -1 else next.match(run, to)
            while (to - at >= least) {
                val found = next.match(run, to)
                if (found >= 0) return found
                to--
            }
            return -1
        }
    }

    private class Choice(val options: Array<Node>) : Node() {
        override fun match(run: Run, at: Int): Int {
            for (option in options) {
                val found = option.match(run, at)
                if (found >= 0) return found
            }
            return -1
        }
    }

    private class Ahead(val inner: Node, val wanted: Boolean, val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int =
            if ((inner.match(run, at) >= 0) == wanted) next.match(run, at) else -1
    }

    private class LineEnd(val next: Node) : Node() {
        override fun match(run: Run, at: Int): Int =
            if (at == run.end || run.text[at] == '\n'.code) next.match(run, at) else -1
    }

    // ---- parsing: a sequence is read from its beginning and built from its end ----

    private fun alternatives(fold: Boolean, next: Node): Node {
        val options = ArrayList<Node>()
        while (true) {
            options += sequence(fold, next)
            if (!take("|")) break
        }
        return if (options.size == 1) options[0] else Choice(options.toTypedArray())
    }

    private fun sequence(fold: Boolean, next: Node): Node {
        val parts = ArrayList<(Node) -> Node>()
        while (at < codes.size && codes[at] != '|'.code && codes[at] != ')'.code) parts += part(fold)
        return parts.foldRight(next) { part, behind -> part(behind) }
    }

    private fun part(fold: Boolean): (Node) -> Node {
        if (take("$")) return { LineEnd(it) }
        for ((opening, inner) in GROUPS) {
            if (!take(opening)) continue
            if (++depth > DEPTH) throw unsupported()
            val from = at
            alternatives(inner ?: fold, End) // to find its end; it is built for what follows it
            val to = at
            if (!take(")")) throw unsupported()
            depth--
            val build = { next: Node ->
                depth = 0
                val behind = at
                at = from
                alternatives(inner ?: fold, next).also {
                    check(at == to)
                    at = behind
                }
            }
            if (opening == "(?!" || opening == "(?=") return { Ahead(build(End), opening == "(?=", it) }
            val optional = take("?")
            if (at < codes.size && codes[at].let { it == '*'.code || it == '+'.code || it == '?'.code || it == '{'.code }) {
                throw unsupported()
            }
            return { if (optional) Choice(arrayOf(build(it), it)) else build(it) }
        }
        val set = atom(fold)
        val (least, most) = quantifier()
        val possessive = (most == ENDLESS || least != most) && !braced && take("+")
        if (at < codes.size && (codes[at] == '?'.code || codes[at] == '*'.code || codes[at] == '+'.code)) throw unsupported()
        return { Repeat(set, least, most, possessive, it) }
    }

    private fun quantifier(): Pair<Int, Int> {
        braced = false
        if (take("*")) return 0 to ENDLESS
        if (take("+")) return 1 to ENDLESS
        if (take("?")) return 0 to 1
        if (!take("{")) return 1 to 1
        braced = true
        val least = number()
        val most = if (take(",")) (if (at < codes.size && codes[at] == '}'.code) ENDLESS else number()) else least
        if (!take("}") || least > most) throw unsupported()
        return least to most
    }

    private fun number(): Int {
        var found = 0
        val from = at
        while (at < codes.size && codes[at] in DIGITS) found = found * 10 + (codes[at++] - '0'.code).also { if (at - from > 3) throw unsupported() }
        if (at == from) throw unsupported()
        return found
    }

    private fun atom(fold: Boolean): CodeSet {
        if (take("[")) return set(fold)
        val set = CodeSet()
        if (codes[at] == '\\'.code) {
            escape(set)?.let { literal(set, it, fold) }
        } else {
            if (codes[at] in META) throw unsupported()
            literal(set, codes[at++], fold)
        }
        return set.done()
    }

    private fun set(fold: Boolean): CodeSet {
        val set = CodeSet()
        val negated = take("^")
        val from = at
        while (!take("]")) {
            if (at >= codes.size) throw unsupported()
            val first = member(set, from) ?: continue
            if (at + 1 < codes.size && codes[at] == '-'.code && codes[at + 1] != ']'.code) {
                at++
                val last = member(set, from) ?: throw unsupported()
                if (last < first || fold) throw unsupported()
                set.range(first, last)
            } else {
                literal(set, first, fold)
            }
        }
        if (at == from + 1) throw unsupported()
        if (negated) set.negate()
        return set.done()
    }

    /** A character of a class; null where it was a class itself, which is in [set] now. */
    private fun member(set: CodeSet, from: Int): Int? {
        val code = codes[at]
        if (code == '\\'.code) return escape(set)
        if (code == '['.code || (code == '-'.code && at == from) || (code == '&'.code && codes.getOrNull(at + 1) == code)) {
            throw unsupported() // sets in sets, and what engines read in different ways
        }
        at++
        return code
    }

    private fun literal(set: CodeSet, code: Int, fold: Boolean) {
        set.range(code, code)
        if (!fold) return
        if (code > 127) throw unsupported()
        val char = code.toChar()
        if (char !in 'a'..'z' && char !in 'A'..'Z') return
        val other = code xor 32
        set.range(other, other)
        if (char == 's' || char == 'S') set.range(0x17F, 0x17F)
        if (char == 'k' || char == 'K') set.range(0x212A, 0x212A)
    }

    /** The character that an escape means; null where it is a class, which is in [set] now. */
    private fun escape(set: CodeSet): Int? {
        at++
        if (at >= codes.size) throw unsupported()
        val code = codes[at++]
        when (code.toChar()) {
            'r' -> return '\r'.code
            'n' -> return '\n'.code
            't' -> return '\t'.code
            's' -> set.flag(Unicode.SPACE)
            'S' -> set.unspaced()
            'p' -> {
                if (!take("{")) throw unsupported()
                val from = at
                while (at < codes.size && codes[at] != '}'.code) at++
                val name = textOf(codes, from, at)
                if (!take("}") || (name !in Unicode.CATEGORIES && name !in MAJOR)) throw unsupported()
                set.category(name)
            }
            else -> {
                if (code > 127 || code.toChar().isLetterOrDigit()) throw unsupported()
                return code
            }
        }
        return null
    }

    private fun take(word: String): Boolean {
        if (at + word.length > codes.size) return false
        for (i in word.indices) if (codes[at + i] != word[i].code) return false
        at += word.length
        return true
    }

    private fun unsupported() = unsupported(expression)

    private companion object {
        fun unsupported(expression: String) = EdgeVLMException.Unsupported(
            "The tokenizer cuts words by the expression '${expression.take(200)}', which this SDK does not know: " +
                "use another model, or a newer SDK.",
        )

        const val STEPS_PER_CHARACTER = 1000L
        const val DEPTH = 3 // of groups in each other: 1
        const val ENDLESS = Int.MAX_VALUE
        val DIGITS = '0'.code..'9'.code
        val META = "*+?(){}[]^.$|".map { it.code }.toSet()
        val MAJOR = setOf("L", "M", "N", "P", "S", "Z", "C")

        /** Openings of groups; whether case does not count inside, null: as outside. */
        val GROUPS: List<Pair<String, Boolean?>> =
            listOf("(?i:" to true, "(?:" to null, "(?!" to null, "(?=" to null, "(" to null)
    }
}
