package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits

/**
 * A tokenizer.json: text to token ids and back, equal to the `tokenizers` library's with special tokens read as text.
 *
 * Immutable: any thread may use it at any time.
 */
public class Tokenizer private constructor(private val file: TokenizerFile, private val inner: Boolean) {
    private val cuts = if (inner) file.cuts.inner() else file.cuts
    private val added = AddedTokens(file.added, file.normalize)
    private val names: Array<String?>
    private val special: Set<Int>

    init {
        val largest = maxOf(file.vocabulary.values.maxOrNull() ?: -1, file.added.maxOfOrNull { it.id } ?: -1)
        names = arrayOfNulls(largest + 1)
        for ((token, id) in file.vocabulary) names[id] = token
        for (token in file.added) names[token.id] = token.content
        special = file.added.filter { it.special }.mapTo(HashSet()) { it.id }
    }

    /** Special tokens by their text. */
    internal val specials: Map<String, Int> get() = file.added.filter { it.special }.associate { it.content to it.id }

    internal val hasBytes: Boolean get() = file.decoders.any { it is ByteFallbackDecoder }

    /** The text of a token, null for an id that is none. */
    public fun token(id: Int): String? = names.getOrNull(id)

    public fun isSpecial(id: Int): Boolean = id in special

    /** The ids of a text in which no special token is recognized, and to which none is added. */
    public fun encode(text: String): IntArray {
        if (text.isBroken()) {
            throw EdgeVLMException("The text holds half of a surrogate pair, which is no character: type it again.")
        }
        val out = Ints(text.length / 2 + 4)
        added.split(text, { part, first ->
            val codes = part.codePointArray()
            cuts.cut(Piece(codes, 0, codes.size, first)) { if (it.start < it.end) file.bpe.encode(it, out) }
        }, { out.add(it) })
        return out.toArray()
    }

    /** The text of ids; bytes that are not UTF-8 read as U+FFFD. [special]: with special tokens spelled. */
    public fun decode(ids: IntArray, special: Boolean = false): String {
        var tokens = ArrayList<String>(ids.size) as List<String>
        for (id in ids) {
            val name = token(id) ?: continue
            if (special || id !in this.special) (tokens as ArrayList<String>) += name
        }
        for (step in file.decoders) tokens = step.decode(tokens)
        return tokens.joinToString("")
    }

    /** The same for text that does not stand at a prompt's beginning, before which Metaspace may put no space. */
    public fun inner(): Tokenizer = if (inner) this else Tokenizer(file, true)

    /** The same as [decode], token by token. */
    public fun stream(): TextStream = TextStream(this)

    public companion object {
        /**
         * Reads the content of a tokenizer.json. [name]: of the file, for errors. [vocabSize]: rows of the model's embedding
         * table, below which every id must lie.
         */
        public fun parse(content: ByteArray, name: String = "tokenizer.json", vocabSize: Int = Limits.VOCABULARY): Tokenizer =
            Tokenizer(TokenizerFile.parse(content, name, vocabSize), false)
    }
}

/** Text as tokens come. The pieces join to the text of all ids; none holds half a character. For one thread. */
public class TextStream internal constructor(private val tokenizer: Tokenizer) {
    private val all = Ints()
    private val run = Ints() // of SentencePiece's byte tokens, which are UTF-8 together or not
    private var held = IntArray(0)
    private var prefix = ""
    private var known = 0 // of `held`, how many ids `prefix` is the text of
    private var shown = 0 // characters of text, in UTF-16

    /** The text that this token completes; often empty, and always for special and unknown tokens. */
    public fun push(id: Int): String {
        val token = if (id < 0 || tokenizer.isSpecial(id)) null else tokenizer.token(id)
        if (token == null) return ""
        all.add(id)
        run.add(id)
        if (tokenizer.hasBytes && isByte(token)) return ""
        val text = step(run.toArray())
        run.clear()
        shown += text.length
        return text
    }

    /** The rest: U+FFFD where the answer stopped inside a character, and usually nothing. */
    public fun finish(): String = tokenizer.decode(all.toArray()).substring(shown)

    /** The library's `DecodeStream`: ids are held until their text ends in a whole character. */
    private fun step(ids: IntArray): String {
        if (prefix.isEmpty() && held.isNotEmpty()) {
            val text = tokenizer.decode(held)
            if (!text.endsWith('\uFFFD')) {
                prefix = text
                known = held.size
            }
        }
        held += ids
        val text = tokenizer.decode(held)
        if (text.toByteArray().size <= prefix.toByteArray().size || text.endsWith('\uFFFD')) return ""
        if (!text.startsWith(prefix)) {
            throw EdgeVLMException("The tokenizer fails on the model's answer: download the model again.")
        }
        val fresh = text.substring(prefix.length)
        val left = held.size - known
        held = held.copyOfRange(known, held.size)
        prefix = tokenizer.decode(held)
        known = left
        return fresh
    }

    private fun isByte(token: String): Boolean =
        token.length == 6 && token.startsWith("<0x") && token[5] == '>' && token.substring(3, 5).all { it in '0'..'9' || it in 'A'..'F' }
}
