package ai.edgevlm.text

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec
import ai.edgevlm.layout.Grounding

/** What the answer to a message is, where it is no text. */
public enum class Places { BOXES, POINTS }

/** The control text around one message. */
public data class RoleText(
    /** Before a message whose first item is text. */
    val openText: String,
    /** Before a message whose first item is an image; null: it takes none. */
    val openImage: String?,
    val close: String,
    /** As [Chat.trim], of this role's messages alone. */
    val trim: Boolean = false,
    /** In the place of [Chat.imageAfter]; null: the same. */
    val imageAfter: String? = null,
    /** The answer is no text, but these, out of the model's region head. */
    val places: Places? = null,
) {
    init {
        val found = length(openText) + length(openImage) + length(close) + length(imageAfter)
        checkSpec(found <= Limits.TEXT, "prompt", "roles", "at most ${Limits.TEXT} characters each") { found }
    }
}

/**
 * A chat template as literal text: every field that is no flag is control text. docs/preprocessing.md, section 7, says
 * what each is. No role "system" means that the model takes no system message.
 */
public data class Chat(
    val prefix: String,
    val roles: Map<String, RoleText>,
    val generation: String,
    val defaultSystem: String = "",
    /** "turn": a message like others; "in_first_user": its text is the first user message's first. */
    val system: String = "turn",
    val imagesFirst: Boolean = false,
    val textOpen: String = "",
    val textClose: String = "",
    val textJoin: String = "",
    val imageBefore: String = "",
    val imageAfter: String = "",
    val trim: Boolean = false,
    val trimEach: Boolean = false,
    val pictures: Int? = null,
    val thinking: String? = null,
    val direct: String? = null,
    val systemFirst: Boolean = false,
    val join: String = "",
    val directMark: String = "",
    val thinkingSystem: String? = null,
    val thinkingMark: String = "",
    val systemMark: String = "",
) {
    init {
        checkSpec("user" in roles, "prompt", "roles", "at least 'user'") { roles.keys.sorted() }
        checkSpec(system == "turn" || system == IN_FIRST_USER, "prompt", "system", "turn or in_first_user") { system }
        checkSpec(pictures == null || pictures >= 1, "prompt", "pictures", "1 or more") { pictures }
        checkSpec(roles.size <= Limits.ROLES, "prompt", "roles", "at most ${Limits.ROLES}") { roles.keys.sorted() }
        checkSpec((thinking == null) == (direct == null), "prompt", "thinking", "with direct") { thinking }
    }

    /** The same with the model's thinking turned on or off; null leaves it as the template has it. */
    public fun switched(thinking: Boolean?): Chat {
        if (thinking == null) return this
        val generation = (if (thinking) this.thinking else direct)
            ?: throw EdgeVLMException("This model has no switch for thinking: leave it as it is.")
        val user = roles.getValue("user")
        val own = if (thinking) user else user.copy(close = directMark + user.close)
        val made = copy(generation = generation, roles = roles + ("user" to own))
        if (!thinking || thinkingSystem == null) return made
        return made.copy(defaultSystem = thinkingSystem, systemMark = thinkingMark)
    }

    internal companion object {
        const val IN_FIRST_USER = "in_first_user"
    }
}

/** The control text around a picture's image tokens: docs/preprocessing.md, section 7. */
public data class PictureText(
    val open: String = "",
    val tile: String = "",
    val tileJoin: String = "",
    val rowJoin: String = "",
    val rowClose: String = "",
    val lineBreak: String = "",
    val whole: String = "",
    val alone: String = "",
    val wholeClose: String = "",
    val close: String = "",
    val number: String = "",
) {
    init {
        for (text in listOf(open, tile, tileJoin, rowJoin, rowClose, lineBreak, whole, alone, wholeClose, close, number)) {
            val most = Limits.PICTURE_TEXT
            checkSpec(length(text) <= most, "prompt", "picture", "texts of at most $most characters") { text }
        }
    }
}

/** The embedding that a control token has in a prompt with pictures, in place of its row of the table: (D,). */
public class MarkerRow(public val tokenId: Int, public val row: FloatArray) {
    init {
        checkSpec(tokenId >= 0, "prompt", "markers", "ids of 31 bits") { tokenId }
        checkSpec(row.size <= Limits.WIDTH, "prompt", "markers", "rows of an embedding") { row.size }
    }
}

/**
 * Conversation and views to token ids: `prompt.json`, version 2. In control text, special tokens of tokenizer.json count;
 * in the user's text they never do.
 */
public data class PromptSpec(
    val version: Int,
    val chat: Chat,
    val picture: PictureText,
    val imageToken: String,
    val imageTokenId: Int,
    val stopIds: List<Int>,
    /** [bosId] comes before the text, which does not have it. */
    val addBos: Boolean = false,
    val bosId: Int? = null,
    val padId: Int? = null,
    /** How answers have boxes; null where they have none. */
    val grounding: Grounding? = null,
    val markers: List<MarkerRow> = emptyList(),
    /** Tokens that stand on the canvas of the picture before them. */
    val canvas: List<Int> = emptyList(),
) {
    init {
        val most = Limits.MARKERS
        checkSpec(markers.size <= most, "prompt", "markers", "at most $most tokens") { markers.size }
        checkSpec(version == VERSION, "prompt", "version", VERSION) { version }
        checkSpec(canvas.size <= most, "prompt", "canvas", "at most $most tokens") { canvas.size }
        for (id in listOf(imageTokenId, bosId, padId) + stopIds + canvas) {
            checkSpec(id == null || id >= 0, "prompt", "a token id", "0 or more, of 31 bits") { id }
        }
        val stops = 1..Limits.STOP_TOKENS
        checkSpec(stopIds.size in stops, "prompt", "stop_ids", "1 to ${Limits.STOP_TOKENS} token ids") { stopIds }
        checkSpec(length(imageToken) <= Limits.PICTURE_TEXT, "prompt", "image_token", "a token's text") { imageToken }
        checkSpec(!addBos || bosId != null, "prompt", "bos_id", "a token id") { bosId }
    }

    public companion object {
        internal const val VERSION: Int = 2

        /** The spec in a parsed JSON value; [where] names it in errors. */
        internal fun read(data: Any?, where: String = "prompt.json"): PromptSpec = Fields.read(data, where) {
            PromptSpec(
                version = int("version"),
                chat = get("chat", ::readChat),
                picture = get("picture", ::readPicture),
                imageToken = text("image_token"),
                imageTokenId = int("image_token_id"),
                stopIds = get("stop_ids") { value, at -> Fields.list(value, at, Fields::int) },
                addBos = flag("add_bos", false),
                bosId = optional("bos_id", Fields::int),
                padId = optional("pad_id", Fields::int),
                grounding = optional("grounding", Grounding::read),
                markers = get("markers", emptyList()) { value, at -> Fields.list(value, at, ::readMarker) },
                canvas = get("canvas", emptyList()) { value, at -> Fields.list(value, at, Fields::int) },
            )
        }

        private fun readChat(data: Any?, where: String): Chat = Fields.read(data, where) {
            Chat(
                prefix = text("prefix"),
                roles = get("roles") { value, at -> Fields.dict(value, at, ::readRole) },
                generation = text("generation"),
                defaultSystem = text("default_system", ""),
                system = text("system", "turn"),
                imagesFirst = flag("images_first", false),
                textOpen = text("text_open", ""),
                textClose = text("text_close", ""),
                textJoin = text("text_join", ""),
                imageBefore = text("image_before", ""),
                imageAfter = text("image_after", ""),
                trim = flag("trim", false),
                trimEach = flag("trim_each", false),
                pictures = optional("pictures", Fields::int),
                thinking = optional("thinking", Fields::text),
                direct = optional("direct", Fields::text),
                systemFirst = flag("system_first", false),
                join = text("join", ""),
                directMark = text("direct_mark", ""),
                thinkingSystem = optional("thinking_system", Fields::text),
                thinkingMark = text("thinking_mark", ""),
                systemMark = text("system_mark", ""),
            )
        }

        private fun readRole(data: Any?, where: String): RoleText = Fields.read(data, where) {
            RoleText(
                openText = text("open_text"),
                openImage = nullable("open_image", Fields::text),
                close = text("close"),
                trim = flag("trim", false),
                imageAfter = optional("image_after", Fields::text),
                places = optional("places") { value, at ->
                    val found = Places.values().firstOrNull { it.name.lowercase(java.util.Locale.ROOT) == Fields.text(value, at) }
                    checkSpec(found != null, "prompt", "roles.places", "boxes or points") { value }
                    found!!
                },
            )
        }

        private fun readPicture(data: Any?, where: String): PictureText = Fields.read(data, where) {
            PictureText(
                open = text("open", ""),
                tile = text("tile", ""),
                tileJoin = text("tile_join", ""),
                rowJoin = text("row_join", ""),
                rowClose = text("row_close", ""),
                lineBreak = text("line_break", ""),
                whole = text("whole", ""),
                alone = text("alone", ""),
                wholeClose = text("whole_close", ""),
                close = text("close", ""),
                number = text("number", ""),
            )
        }

        private fun readMarker(data: Any?, where: String): MarkerRow = Fields.read(data, where) {
            val row = get("row") { value, at -> Fields.list(value, at, Fields::real) }
            MarkerRow(int("token_id"), FloatArray(row.size) { row[it].toFloat() })
        }
    }
}

/** Characters, as Python counts them. */
internal fun length(text: String?): Int = text?.codePointCount(0, text.length) ?: 0
