"""What is said that no program answers: greetings, what a picture does not tell; and MiniGPT-v2's task words."""

from __future__ import annotations

import math
import random

from minichat.toy.captions import setting
from minichat.toy.dialogues import BYE, CAN, GREETING, NO_SUCH, THANKS, WHO, WORLD
from minichat.toy.speech.grammar import drawn
from minichat.toy.speech.nouns import Nouns, Things, article, matching, numbered, plural
from minichat.toy.speech.propose import Proposer
from minichat.toy.speech.speaker import written
from minichat.toy.world import POLYGONS, Look, Scene, Thing, join, named, some

# --- What is said that no scene answers: greetings and thanks, what a picture does not tell, what is no part of this
# world, what cannot be understood.


HELLO = "Hello! Ask me about the picture."
FINE = "I am fine, thank you. Ask me about the picture."
SEEN = "I see it in the picture."
CANNOT = "I cannot tell that from the picture. I can tell you shapes, colours, sizes, numbers and places."
NOT_UNDERSTOOD = "I did not understand that. Please ask me about the picture."
ENGLISH = "I only understand English. Please ask me in English."
GLAD = "I am glad that helps."
SORRY = "I am sorry. Please ask me again."

_SAID: dict[str, tuple[str, ...]] = {
    GREETING: (
        "(hello|hi|hey|hiya|howdy|yo|heya|hullo)[ (there|bot|minichat|again|friend|everyone)]",
        "good (morning|evening|afternoon|day)", "greetings", "(morning|evening)!", "hi, (anyone there|are you there)?",
    ),
    FINE: (
        "how are you[ (today|doing)]?", "how('s it going| is it going| do you do)?", "are you (ok|okay|well|alright)?",
        "what's up?", "how do you feel[ today]?", "hi, how are you?", "you alright?",
    ),
    WHO: (
        "who are you?", "what are you?", "what('s| is) your name?",
        "are you (a human|a person|a robot|an ai|a bot|real)?", "who am i (talking|speaking|chatting) (to|with)?",
        "(introduce|describe|present) yourself.", "what's your name then?", "who (made|built|trained|created) you?",
        "what (model|kind of model|sort of bot) are you?", "do you have a name?",
        "tell me (about yourself|who you are|your name).", "what should i call you?", "are you (chatgpt|gpt|minichat)?",
    ),
    CAN: (
        "what can you do?", "what can (i|we) ask [you]?", "how can you help [me]?", "help", "help me",
        "what do you know?", "how does this work?", "what (should|could) i ask?",
        "what are you (able to do|good at|for)?", "what do you do?", "what kind of questions can i ask?",
        "can you help me?", "what questions do you (answer|understand)?", "give me some (examples|ideas).",
        "what are you capable of?", "instructions?", "what else can you do?",
    ),
    THANKS: (
        "thanks[ (a lot|so much|a bunch|mate)]", "thank you[ (so much|very much|kindly)]", "thx", "ty", "cheers",
        "(great|ok|okay|perfect|nice|cool), (thanks|thank you)", "many thanks", "much appreciated",
        "thanks for (that|your help|the help|the answer)", "that helps, thanks", "ta",
    ),
    GLAD: (
        "(well done|good job|nice|great|awesome|cool|perfect|excellent|brilliant|good|amazing)[!|.]",
        "(that's|that is) (right|correct|true)", "(correct|right|exactly|yes)[!|.]",
        "you're (good|right|smart|clever|great)", "good (bot|answer|work)", "i (see|agree|understand)",
        "(ok|okay|k|alright|fine|got it|understood|makes sense)", "impressive", "lovely", "wow", "good to know",
        "spot on",
    ),
    BYE: (
        "(bye|goodbye|bye bye|bye-bye|byebye|farewell)[ (for now|then|bot)]", "see (you|ya)[ (later|soon|tomorrow)]",
        "good night", "(take care|cya|ciao|laters|so long|cheerio)", "i (have to|must|gotta) go[ now]",
        "that's (all|it)[ for (today|now)]", "talk to you later", "i'm (done|off|leaving)", "until next time",
        "have a (nice|good) (day|evening|one)",
    ),
    SORRY: (
        "(that's|that is|you're|you are) (wrong|not right|incorrect|mistaken)", "(no|nope)[, that's wrong]",
        "wrong[!|.]", "i don't (think so|believe you)", "that can't be right", "not (true|correct|right)", "really not",
        "try again",
    ),
    CANNOT: (
        "who (drew|made|painted|created|took|drawn) (this|it|the picture)?",
        "when was (this|it|the picture) (drawn|made|taken|painted)?",
        "how old is (it|the picture|the {thing}|the artist)?", "what (does|did|would) (it|the {thing}|this) cost?",
        "how (heavy|expensive|warm|fast|loud|soft) is (it|the {thing})?", "what is (it|the {thing}) made of?",
        "what does (it|the {thing}) (smell|taste|sound|feel) like?",
        "where was (this|it|the picture) (taken|made|drawn)?",
        "why is the {thing} (there|that colour|so big|so small)?",
        "is the {thing} (happy|sad|alive|moving|heavy|soft|metal|expensive)?",
        "what (does|might) (it|this|the picture) mean?", "is it (beautiful|nice|art|valuable)?",
        "do you like (it|the picture|the {thing})?", "what's your favourite (colour|shape)?",
        "what is the {thing} (thinking|feeling|doing|for)?", "what is the weather like there?",
        "(what|which) {thing} do you like (best|most)?", "what (happens|will happen) next?",
        "what programme was it drawn with?", "how many pixels (has|does) (it|the picture) [have]?",
        "who owns the {thing}?", "what's behind the {thing}?", "how (far|long) is it in (centimetres|inches|metres)?",
        "what is the exact area of the {thing}?", "is the {thing} 3d?", "which {thing} is the prettiest?",
        "what is the name of the {thing}?", "can i buy (it|the {thing})?",
        "what (month|year|day) is it in the picture?", "is it day or night in the picture?", "what time is it there?",
    ),
}  # fmt: skip
_FOREIGN = (
    "dog", "cat", "person", "car", "house", "tree", "bird", "face", "boat", "flower", "table", "horse", "fish", "ball",
    "man", "woman", "child", "chair", "bus", "bike", "cow", "sheep", "plane", "train", "apple", "banana", "cup", "book",
    "phone", "computer", "lamp", "door", "window", "mountain", "river", "cloud", "sun", "moon", "spider", "snake",
    "lion", "elephant", "robot", "hat", "shoe", "hand", "eye", "mouse", "duck", "rabbit", "bottle", "clock", "key",
    "knife", "fork", "plate", "street", "bridge", "castle", "ghost", "dragon", "unicorn", "pizza", "cake", "carrot",
    "guitar", "piano", "camera", "umbrella", "kitten", "puppy", "girl", "boy", "baby", "truck", "ship", "rocket",
    "planet", "butterfly", "frog", "whale", "tiger", "bear",
)  # fmt: skip
_FOREIGN_ASKED = (
    "is there (a|any) {x} [in the picture|here]?", "do you see (a|any) {x}?", "where is the {x}?",
    "what is the {x} doing?", "what colour is the {x}?", "how many {xs} are there?", "are there any {xs}?",
    "can you see the {x}?", "is the {x} big?", "what about the {x}?", "and the {x}?", "is that a {x}?",
    "describe the {x}.", "i (think i |)see a {x}.", "does it show a {x}?", "what is (left|right) of the {x}?",
    "any {xs}?", "(find|show me) the {x}.", "how big is the {x}?", "isn't there a {x}?",
    "is there something like a {x}?", "tell me about the {x}.", "can you (spot|find) a {x}?", "a {x}?",
    "count the {xs}.",
)  # fmt: skip
_OTHER_SHAPES = (
    "pentagon", "hexagon", "rectangle", "oval", "arrow", "crescent", "spiral", "octagon", "cube", "pyramid",
    "trapezoid", "line", "ellipse", "cylinder", "cone", "parallelogram",
)  # fmt: skip
_OTHER_COLOURS = (
    "turquoise", "beige", "golden", "silver", "magenta", "cyan", "teal", "lime", "maroon", "navy", "olive", "crimson",
    "lavender", "cream", "indigo", "tan",
)  # fmt: skip
_OTHER_ASKED = (
    "is there (a|any) {x}?", "do you see (a|any) {x}?", "are there any {xs}?", "can you see (a|any) {x}?", "any {xs}?",
    "does the picture (show|have|contain) (a|any) {x}?", "isn't there a {x}?",
    "is there a {x} [in the picture|here|somewhere]?",
)  # fmt: skip
_LANGUAGES = (
    "Welche Farbe hat der Stern?", "Wie viele Kreise gibt es?", "Was ist auf dem Bild?", "Wo ist das Quadrat?",
    "Ist der Kreis rot?", "Was siehst du?", "Beschreibe das Bild.", "Hallo, wie geht es dir?", "Gibt es ein Herz?",
    "Kannst du Deutsch?", "Welche Formen siehst du?", "De quelle couleur est l'étoile ?",
    "Combien de cercles y a-t-il ?", "Que vois-tu ?", "Où est le carré ?", "Décris l'image.",
    "Est-ce qu'il y a un cœur ?", "Bonjour, comment ça va ?", "Parles-tu français ?", "Quelle est la couleur du fond ?",
    "¿De qué color es la estrella?", "¿Cuántos círculos hay?", "¿Qué ves?", "¿Dónde está el cuadrado?",
    "Describe la imagen en español.", "¿Hay un corazón?", "Hola, ¿qué tal?", "¿Hablas español?",
    "¿Cuál es el color del fondo?", "Di che colore è la stella?", "Quanti cerchi ci sono?", "Che cosa vedi?",
    "Dove si trova il quadrato?", "Descrivi l'immagine.", "Parli italiano?", "Welke kleur heeft de ster?",
    "Hoeveel cirkels zijn er?", "Wat zie je?", "Waar is het vierkant?", "Spreek je Nederlands?",
    "Qual é a cor da estrela?", "Quantos círculos existem?", "O que você vê?", "Onde está o quadrado?",
    "Descreva a imagem.", "Jakiego koloru jest gwiazda?", "Ile jest kół?", "Co widzisz?", "Vilken färg har stjärnan?",
    "Hur många cirklar finns det?", "Vad ser du?", "Hvad ser du?", "Hvilken farve har stjernen?",
    "Minkä värinen tähti on?", "Yıldız ne renk?", "Kaç daire var?", "Какого цвета звезда?", "Сколько кругов?",
    "Что ты видишь?", "星星是什么颜色？", "有几个圆？",
    "星は何色ですか？", "何が見えますか？", "별은 무슨 색이에요?", "ما لون النجمة؟",
)  # fmt: skip
_HOW_KNOWN = (
    "how do you know[ that]?", "why[ do you (think|say) so]?", "how can you tell?",
    "what makes you (think|say) (so|that)?", "how come?", "are you guessing?", "where do you see that?", "says who?",
)  # fmt: skip
_GENERAL = (
    "who is the president[ of {place}]?", "what('s| is) the capital of {place}?", "what time is it?",
    "what('s| is) the weather like today?", "tell me a joke.", "how old are you?",
    "(what is|what's) (two plus two|5 times 7|12 + 7|the square root of 16)?", "who wrote (hamlet|faust)?",
    "write (a program|a poem|an email|an essay) for me.", "what happened in 1969?",
    "what should i (cook|wear|watch) tonight?", "translate this into {place}'s language.", "how far away is the moon?",
    "what is the meaning of life?", "what's in the news today?", "can you drive a car?", "who won the world cup?",
    "how do i bake bread?", "do you love me?", "what is photosynthesis?", "play some music.", "recommend a book.",
    "how tall is mount everest?", "sing a song.", "what is your favourite film?", "how many people live in {place}?",
    "explain quantum physics.", "where do you live?", "set a timer.", "what day is it?",
)  # fmt: skip
_PLACES = (
    "France",
    "Germany",
    "Italy",
    "Spain",
    "Japan",
    "Brazil",
    "Canada",
    "Poland",
    "India",
    "Kenya",
    "Norway",
    "Peru",
)
SOCIAL = (GREETING, FINE, WHO, CAN, THANKS, GLAD, BYE, SORRY)


def social(rng: random.Random) -> tuple[str, str]:
    """What people say to be civil, and the reply."""
    reply = rng.choices(SOCIAL, (10, 4, 10, 10, 12, 8, 10, 4))[0]
    return _say(rng.choice(_SAID[reply]), rng), reply


def unknowable(rng: random.Random) -> tuple[str, str]:
    """What a picture of shapes does not tell."""
    return _say(rng.choice(_SAID[CANNOT]), rng), CANNOT


def foreign(rng: random.Random) -> tuple[str, str]:
    """A thing that is no part of the synthetic world: it is named as it was said."""
    if rng.random() < 0.3:
        if rng.random() < 0.6:
            what = rng.choice(_OTHER_SHAPES)
        else:
            noun = rng.choice(("object", "thing", "shape", "star", "circle", "square", "ring"))
            what = f"{rng.choice(_OTHER_COLOURS)} {noun}"
        return _about(rng.choice(_OTHER_ASKED), what, rng), f"No, there is no {what.replace('thing', 'object')}."
    what = rng.choice(_FOREIGN)
    return _about(rng.choice(_FOREIGN_ASKED), what, rng), NO_SUCH.format(what)


def _about(template: str, what: str, rng: random.Random) -> str:
    text = drawn(template, rng).replace("{xs}", plural(what))
    return _written(text.replace("a {x}", article(what)).replace("{x}", what), rng)


def how_known(rng: random.Random) -> tuple[str, str]:
    return _say(rng.choice(_HOW_KNOWN), rng), SEEN


def language(rng: random.Random) -> tuple[str, str]:
    """A question in another language."""
    return rng.choice(_LANGUAGES), ENGLISH


def gibberish(rng: random.Random) -> tuple[str, str]:
    """What means nothing: keys that were hit at random, marks, or words in no order."""
    which = rng.random()
    if which < 0.45:
        rows = ("asdfghjkl", "qwertyuiop", "zxcvbnm", "abcdefghijklmnopqrstuvwxyz")
        words = [
            "".join(rng.choice(rng.choice(rows)) for _ in range(rng.randint(3, 9))) for _ in range(rng.randint(1, 4))
        ]
        return " ".join(words), NOT_UNDERSTOOD
    if which < 0.65:
        return "".join(rng.choice("?!.,;:#*+-_()%&$/0123456789") for _ in range(rng.randint(2, 10))), NOT_UNDERSTOOD
    others = (
        "the",
        "of",
        "and",
        "is",
        "so",
        "than",
        "why",
        "blub",
        "florp",
        "snarg",
        "wibble",
        "because",
        "if",
        "not",
        "grumf",
        "zonk",
        "until",
    )
    return " ".join(rng.sample(others, rng.randint(3, 6))), NOT_UNDERSTOOD


def general(rng: random.Random) -> tuple[str, str]:
    """What a general assistant could answer, and a model of drawn shapes cannot."""
    return _say(rng.choice(_GENERAL).replace("{place}", rng.choice(_PLACES)), rng), WORLD


def aside(rng: random.Random) -> tuple[str, str]:
    """Something that no scene answers, said beside a picture."""
    make = rng.choices((social, unknowable, foreign, language, gibberish), (34, 24, 26, 8, 8))[0]
    text, reply = make(rng)
    return text, HELLO if reply == GREETING else reply


def _say(template: str, rng: random.Random) -> str:
    text = drawn(template, rng).replace(
        "{thing}", rng.choice(("star", "circle", "square", "heart", "shape", "ring", "object", "triangle"))
    )
    return _written(text, rng)


def _written(text: str, rng: random.Random) -> str:
    text = written(text, rng)
    return text if text[-1:] in "?.!" or rng.random() < 0.6 else text + rng.choice(("!", "."))


# --- MiniGPT-v2's task words (arXiv:2310.09478): `[refer]`, `[identify]` and `[grounding]`, with boxes in hundredths.
#
# A box is `{<x1><y1><x2><y2>}`: left, top, right and bottom, each from 0 to 100 of the picture's side.


Box = tuple[int, int, int, int]


def box(thing: Thing) -> Box:
    """The smallest upright box round a thing as it is drawn."""
    turn = math.radians(thing.angle)
    cos, sin = math.cos(turn), math.sin(turn)
    corners = POLYGONS.get(thing.shape)
    if corners is None:  # a circle or a ring
        left, top, right, bottom = -1.0, -1.0, 1.0, 1.0
    else:
        xs = [a * cos - b * sin for a, b in corners]
        ys = [a * sin + b * cos for a, b in corners]
        left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    sides = (thing.x + left * thing.radius, thing.y + top * thing.radius,
             thing.x + right * thing.radius, thing.y + bottom * thing.radius)  # fmt: skip
    one, two, three, four = (min(100, max(0, round(100 * side))) for side in sides)
    return one, two, three, four


def spelled(where: Box) -> str:
    """ "{<12><30><45><63>}"."""
    return "{" + "".join(f"<{side}>" for side in where) + "}"


def refer(scene: Scene, rng: random.Random) -> tuple[str, str] | None:
    """ "[refer] the small red star" → its box, those of all that answer, or that there is none."""
    proposer = Proposer(Look(scene), rng)
    things = proposer.one() or proposer.some(plain=True)
    nouns = Nouns(rng)
    text = rng.choice((nouns.the, nouns.the, nouns.bare, nouns.a))(things)
    frame = rng.choice(
        (
            "[refer] {x}",
            "[refer] {x}",
            "[refer] where is {x}?",
            "[refer] give me the location of {x}",
            "[refer] {x}?",
            "[refer] from this image, tell me the location of {x}",
            "[refer] could you tell me the location for {x}?",
            "[refer] where can i locate {x}?",
        )
    )
    return frame.format(x=text), referred(scene, things)


def referred(scene: Scene, things: Things) -> str:
    """The reply to `[refer]`."""
    found = matching(Look(scene), things) or []
    return " ".join(spelled(box(thing)) for thing in found) or f"There is {numbered(things, 0)}."


def identify(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[identify] {<…>}" → what is there; the box may be a little off."""
    thing = rng.choice(scene.things)
    one, two, three, four = (min(100, max(0, side + rng.randint(-2, 2))) for side in box(thing))
    frame = rng.choice(
        (
            "[identify] {x}",
            "[identify] {x}",
            "[identify] what is this {x}",
            "[identify] what object is in this location {x}",
            "[identify] identify the object present at this location {x}",
            "[identify] describe this object in {x}",
        )
    )
    told = some((thing.size, thing.colour, thing.shape))
    return frame.replace("{x}", spelled((one, two, three, four))), f"{told.capitalize()}."


def grounding(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """ "[grounding] describe the picture" → a caption in which each thing has its box."""
    frame = rng.choice(
        (
            "describe this image as detailed as possible",
            "describe the picture",
            "please describe this image in detail",
            "what is in the picture?",
            "can you provide a description of the image?",
            "give me a caption",
            "describe what you see",
        )
    )
    return f"[grounding] {frame}", grounded(scene)


def grounded(scene: Scene) -> str:
    """The reply to `[grounding]`."""
    told = [f"<p>{some(named(thing))}</p> {spelled(box(thing))}" for thing in Look(scene).things]
    return f"{join(told)} {setting(scene)}."


def task(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One of the three."""
    which = rng.random()
    if which < 0.5 and (referring := refer(scene, rng)) is not None:
        return referring
    return identify(scene, rng) if which < 0.8 else grounding(scene, rng)
