package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.BadJson
import ai.edgevlm.json.Json

/**
 * A tokenizer.json as the parts that a [Tokenizer] is made of.
 *
 * What a file may ask for is what Python's `edgevlm.inputs.tokenizer_file` allows, of BPE alone, and of its steps those
 * that are written here; any other is refused by its name.
 */
internal class TokenizerFile private constructor(private val name: String, data: Map<*, *>, vocabSize: Int) {
    val added: List<AddedToken>
    val vocabulary: Map<String, Int>
    val normalize: (String) -> String
    val cuts: Cuts
    val decoders: List<Decoder>
    val bpe: Bpe

    init {
        val model = part(data["model"], "model")
        val kind = model["type"] ?: "BPE"
        if (kind != "BPE") throw unsupported("has the model '${kind.toString().take(40)}'")
        vocabulary = vocabulary(model)
        added = added(data["added_tokens"])
        checkIds(vocabSize)
        checkAdded()
        val normalizers = steps(data["normalizer"], "normalizers")
        val splits = steps(data["pre_tokenizer"], "pretokenizers")
        val decoding = steps(data["decoder"], "decoders")
        if (normalizers.size + splits.size + decoding.size > MOST_STEPS) {
            throw unsupported("works in more than $MOST_STEPS steps")
        }
        for (part in listOf(normalizers, decoding)) {
            val growth = part.fold(1L) { all, step -> minOf(all * growth(step), Limits.COUNT.toLong()) }
            if (growth > MOST_GROWTH) throw unsupported("can make more than $MOST_GROWTH characters of one")
        }
        val each = normalizers.map(::normalizer)
        normalize = { text -> each.fold(text) { at, step -> step(at) } }
        val byteLevel = splits.lastOrNull()?.get("type") == "ByteLevel"
        if (splits.dropLast(1).any { it["type"] == "ByteLevel" }) throw unsupported("has a pre-tokenizer behind ByteLevel")
        cuts = Cuts(splits.map(::cut))
        if (decoding.isEmpty()) throw unsupported("has no decoder")
        decoders = decoding.map(::decoder)
        bpe = bpe(model, byteLevel)
    }

    private fun vocabulary(model: Map<*, *>): Map<String, Int> {
        val found = HashMap<String, Int>()
        for ((token, id) in part(model["vocab"], "model.vocab")) found[token as String] = number(id, "model.vocab")
        if (HashSet(found.values).size != found.size) throw damaged("two tokens have one id")
        return found
    }

    private fun added(data: Any?): List<AddedToken> = list(data ?: emptyList<Any>(), "added_tokens").map {
        val token = part(it, "added_tokens")
        fun flag(name: String, default: Boolean? = null): Boolean =
            token[name] as? Boolean ?: default.takeIf { name !in token } ?: throw damaged("an added token has no $name")
        AddedToken(
            text(token["content"], "added_tokens"), number(token["id"], "added_tokens"), flag("special"), flag("normalized"),
            flag("single_word"), flag("lstrip"), flag("rstrip"),
        )
    }

    private fun checkIds(size: Int) {
        for ((token, id) in vocabulary.entries.map { it.key to it.value } + added.map { it.content to it.id }) {
            if (id >= size) {
                throw EdgeVLMException.BundleError(
                    "'$name' gives the token '${token.take(40)}' the id $id, but the model has $size embeddings: " +
                        "the tokenizer belongs to another model; download the bundle again.",
                )
            }
            if (token.codePointCount(0, token.length) > MOST_TOKEN) throw unsupported("has a token of over $MOST_TOKEN characters")
        }
    }

    /** The library counts on from the vocabulary's length, whatever the file says. */
    private fun checkAdded() {
        val ids = HashMap<String, Int>()
        var largest = -1
        for (token in added) {
            if (token.content.isEmpty()) throw damaged("an added token is empty")
            val read = vocabulary[token.content] ?: ids[token.content] ?: maxOf(vocabulary.size, largest + 1)
            ids[token.content] = read
            largest = maxOf(largest, read)
            if (read != token.id) {
                throw EdgeVLMException.BundleError(
                    "'$name' gives the added token '${token.content.take(40)}' the id ${token.id}, but it would be read as " +
                        "$read, since other ids are missing or given twice: download it again.",
                )
            }
        }
    }

    private fun growth(step: Map<*, *>): Long = when (step["type"]) {
        "NFC" -> 3
        "ByteLevel" -> 4
        "Prepend" -> 1L + text(step["prepend"], "normalizer").let { it.codePointCount(0, it.length) }
        "Replace" -> {
            val content = text(step["content"], "normalizer").let { it.codePointCount(0, it.length) }
            val found = pattern(step).let { it.codePointCount(0, it.length) }
            maxOf(1L, (content + found - 1L) / found)
        }
        else -> 1
    }

    private fun normalizer(step: Map<*, *>): (String) -> String = when (val kind = step["type"]) {
        "NFC" -> { text -> textOf(Nfc.of(text.codePointArray())) }
        "Prepend" -> text(step["prepend"], "normalizer").let { before -> { text -> if (text.isEmpty()) text else before + text } }
        "Replace" -> {
            val pattern = pattern(step)
            val content = text(step["content"], "normalizer")
            ({ text -> text.replace(pattern, content) })
        }
        else -> throw unsupported("has the normalizer '${kind.toString().take(40)}'")
    }

    private fun cut(step: Map<*, *>): Cut = when (val kind = step["type"]) {
        "Split" -> {
            val pattern = part(step["pattern"], "pattern")
            val matches = when {
                "Regex" in pattern -> ByExpression(text(pattern["Regex"], "pattern"))
                else -> ByText(text(pattern["String"], "pattern"))
            }
            val behavior = BEHAVIORS[step["behavior"]] ?: throw damaged("Split has an unknown behavior")
            Split(matches, behavior, step["invert"] as? Boolean ?: throw damaged("Split has no invert"))
        }
        "Digits" -> {
            val single = step["individual_digits"] as? Boolean ?: throw damaged("Digits has no individual_digits")
            Split(ByFlag(Unicode.NUMERIC), if (single) Behavior.ISOLATED else Behavior.CONTIGUOUS, false)
        }
        "ByteLevel" -> ByteWords(
            step["add_prefix_space"] as? Boolean ?: throw damaged("ByteLevel has no add_prefix_space"),
            step["use_regex"] as? Boolean ?: true,
        )
        "Metaspace" -> Metaspace(mark(step), scheme(step), step["split"] as? Boolean ?: true)
        else -> throw unsupported("has the pre-tokenizer '${kind.toString().take(40)}'")
    }

    private fun decoder(step: Map<*, *>): Decoder = when (val kind = step["type"]) {
        "ByteLevel" -> ByteLevelDecoder
        "Fuse" -> FuseDecoder
        "ByteFallback" -> ByteFallbackDecoder
        "Metaspace" -> MetaspaceDecoder(mark(step), scheme(step) != "never")
        "Replace" -> {
            val pattern = pattern(step)
            if (pattern.codePointCount(0, pattern.length) != 1) throw unsupported("has a decoder that replaces '$pattern'")
            ReplaceDecoder(pattern, text(step["content"], "decoder"))
        }
        "Strip" -> {
            val content = text(step["content"], "decoder")
            val most = number(step["start"], "decoder")
            if (content.length != 1 || most > 1 || number(step["stop"], "decoder") != 0) {
                throw unsupported("has a decoder that takes away more than one character")
            }
            StripDecoder(content[0], most)
        }
        else -> throw unsupported("has the decoder '${kind.toString().take(40)}'")
    }

    private fun mark(step: Map<*, *>): Int {
        val mark = text(step["replacement"], "Metaspace")
        if (mark.codePointCount(0, mark.length) != 1) throw damaged("Metaspace has no replacement of one character")
        return mark.codePointAt(0)
    }

    private fun scheme(step: Map<*, *>): String {
        val scheme = step["prepend_scheme"] ?: throw unsupported("has a Metaspace without prepend_scheme")
        if (scheme != "always" && scheme != "first" && scheme != "never") throw damaged("Metaspace has no prepend_scheme")
        return scheme as String
    }

    private fun pattern(step: Map<*, *>): String {
        val pattern = part(step["pattern"], "pattern")
        val found = pattern["String"] ?: throw unsupported("replaces by an expression")
        return text(found, "pattern").ifEmpty { throw unsupported("replaces nothing") }
    }

    private fun bpe(model: Map<*, *>, byteLevel: Boolean): Bpe {
        for (name in listOf("continuing_subword_prefix", "end_of_word_suffix")) {
            if (!(model[name] as? String).isNullOrEmpty()) throw unsupported("has the $name '${model[name].toString().take(40)}'")
        }
        val unknown = (model["unk_token"] as? String)?.let { vocabulary[it] ?: throw damaged("its unk_token is no token") } ?: -1
        val fallback = model["byte_fallback"] == true
        if (fallback && byteLevel) throw unsupported("has both ByteLevel and byte_fallback")
        return Bpe(
            vocabulary, merges(list(model["merges"], "model.merges")), unknown, model["fuse_unk"] == true, fallback,
            model["ignore_merges"] == true, byteLevel,
        )
    }

    private fun merges(data: List<*>): Merges {
        val found = Merges(data.size)
        for ((rank, each) in data.withIndex()) {
            val pair = if (each is String) each.split(' ') else list(each, "model.merges").map { text(it, "model.merges") }
            if (pair.size != 2) throw damaged("a merge is not one of two tokens")
            val left = vocabulary[pair[0]]
            val right = vocabulary[pair[1]]
            val made = vocabulary[pair[0] + pair[1]]
            if (left == null || right == null || made == null) throw damaged("a merge is of no tokens")
            found.put(left, right, rank, made)
        }
        return found
    }

    private fun steps(data: Any?, inner: String, depth: Int = 0): List<Map<*, *>> {
        if (data == null) return emptyList()
        if (depth > Limits.JSON_DEPTH) throw damaged("it is nested too deep")
        val step = part(data, inner)
        if (step["type"] != "Sequence") return listOf(step)
        return list(step[inner], inner).flatMap { steps(it ?: throw damaged("a step is null"), inner, depth + 1) }
    }

    private fun part(value: Any?, what: String): Map<*, *> = value as? Map<*, *> ?: throw damaged("$what is no object")

    private fun list(value: Any?, what: String): List<*> = value as? List<*> ?: throw damaged("$what is no list")

    private fun text(value: Any?, what: String): String = value as? String ?: throw damaged("$what has no text where one should be")

    private fun number(value: Any?, what: String): Int {
        if (value is Long && value in 0..Limits.COUNT) return value.toInt()
        throw damaged("$what has no whole number where one should be")
    }

    private fun damaged(what: String): EdgeVLMException = damaged(name, what)

    private fun unsupported(what: String): EdgeVLMException = EdgeVLMException.Unsupported(
        "'$name' $what: this SDK does not support such a tokenizer; use another model, or a newer SDK.",
    )

    companion object {
        private const val MOST_STEPS = 64
        private const val MOST_TOKEN = 4096
        private const val MOST_GROWTH = 100
        private val BEHAVIORS = mapOf(
            "Isolated" to Behavior.ISOLATED, "Removed" to Behavior.REMOVED, "MergedWithPrevious" to Behavior.MERGED_WITH_PREVIOUS,
            "MergedWithNext" to Behavior.MERGED_WITH_NEXT, "Contiguous" to Behavior.CONTIGUOUS,
        )

        /** [name]: of the file, for errors. [vocabSize]: rows of the model's embedding table. */
        fun parse(content: ByteArray, name: String, vocabSize: Int): TokenizerFile {
            val data = try {
                Json.parse(content, Limits.TOKENIZER_FILE)
            } catch (error: BadJson) {
                throw damaged(name, error.message ?: "it is no JSON")
            }
            return TokenizerFile(name, data as? Map<*, *> ?: throw damaged(name, "it is no object"), vocabSize)
        }

        private fun damaged(name: String, what: String): EdgeVLMException =
            EdgeVLMException.BundleError("'$name' is not a tokenizer.json ($what): download it again.")
    }
}
