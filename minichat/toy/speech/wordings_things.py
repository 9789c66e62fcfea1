"""What people say who ask about the things themselves: whether they are there, and what they are like.

{the}, {a}, {many}, {bare}, {adj}, {whose}: phrases for the first set, {the2} … for the second; {is}: a value after
"is" ("red", "a star"), {are}: after "are" ("red", "stars"), {word}: alone; {n}: a number.
"""

from __future__ import annotations

from minichat.toy.speech.grammar import Wh, Wording, YesNo

THING_WORDINGS: dict[str, Wording] = {
    "exists": YesNo(
        ask=(
            "could you spot {a}", "does {a} exist", "is {a} in there", "are there {many} in it", "has it got {a}",
            "does it include any {many}", "are we looking at any {many}", "do i see {a}", "can anyone see {a}",
            "is there one that is {is1}", "would there be {a}", "is there {a}", "are there any {many}",
            "is there any {bare}", "do you see {a}", "do you see any {many}", "can you (see|find|spot) {a}",
            "can you (see|find|spot) any {many}", "does the {pic} (show|have|contain) {a}", "is {a} there",
            "are any {many} (there|visible|shown|present)", "is {a} (visible|present|shown)", "is there anything {adj}",
            "do you see anything {adj}", "does it (have|show|contain) {a}", "is there at least one {bare}",
            "have you got {a}", "is there such a thing as {a}", "did anyone draw {a}", "are there {many}",
            "can {a} be seen", "have we got any {many}", "does this (have|show) any {many}",
        ),
        state=(
            "there is {a}", "there's {a}", "there are {many}", "i see {a}", "the {pic} (has|shows|contains) {a}",
            "there's something {adj}", "{a} is there",
        ),
        doubt=(
            "isn't there {a}", "aren't there any {many}", "don't you see {a}", "isn't there anything {adj}",
            "isn't there something {adj}",
        ),
        tag="isn't there",
        bare=(
            "{many} - any", "{a}, yes or no", "{bare} present", "{many} here", "{a}", "any {many}", "any {bare}",
            "{many}", "anything {adj}", "something {adj}", "got any {many}", "any sign of {a}", "see {a}",
            "see any {many}",
        ),
    ),
    "none": YesNo(
        ask=("are there no {many}", "is there no {bare}", "do you see no {many}", "is the {pic} without any {many}"),
        state=(
            "there is no {bare}", "there are no {many}", "there isn't {a}", "there is not a single {bare}",
            "there aren't any {many}", "there's no {bare}", "i see no {many}", "i don't see {a}",
            "i can't see any {many}", "the {pic} has no {many}",
        ),
        bare=("no {many}", "no {bare}", "not a single {bare}"),
    ),
    "both exist": YesNo(
        ask=(
            "is there {a} and {a2}", "are there {many} and {many2}", "do you see both {a} and {a2}",
            "are there both {many} and {many2}", "can you see {a} as well as {a2}", "is there both {a} and {a2}",
            "does the {pic} (have|show|contain) {a} and {a2}", "are {a} and {a2} both there",
        ),
        state=(
            "there are {a} and {a2}", "there is {a} and {a2}", "there is {a} as well as {a2}",
            "there are both {many} and {many2}", "i see {a} and {a2}",
        ),
        bare=("{a} and {a2}", "both {a} and {a2}"),
    ),
    "either exists": YesNo(
        ask=(
            "is there {a} or {a2}", "are there any {many} or {many2}", "do you see {a} or {a2}",
            "is there either {a} or {a2}", "can you see any {many} or {many2}", "does the {pic} have {a} or {a2}",
        ),
        state=("there is {a} or {a2}", "there is either {a} or {a2}", "there are {many} or {many2}"),
        bare=("any {many} or {many2}",),
    ),
    "every": YesNo(
        ask=(
            "are all [of] the {many} {are}", "is every {bare} {is}", "are the {many} all {are}", "is each {bare} {is}",
            "are all {many} {are}", "is each of the {many} {is}", "are the {many} {are}", "are the {many} {are} only",
        ),
        state=(
            "all [of] the {many} are {are}", "every {bare} is {is}", "the {many} are all {are}", "all {many} are {are}",
            "each {bare} is {is}", "the {many} are {are}",
        ),
        doubt=("aren't all [of] the {many} {are}", "isn't every {bare} {is}", "aren't the {many} all {are}"),
        bare=("all {many} {are}", "every {bare} {is}"),
    ),
    "any": YesNo(
        ask=(
            "are any of the {many} {are}", "is any [of the] {many} {is}", "is one of the {many} {is}",
            "is at least one of the {many} {is}", "are some of the {many} {are}", "is any {bare} {is}",
            "do any of the {many} happen to be {are}", "are there any {many} that are {are}",
        ),
        state=(
            "one of the {many} is {is}", "some of the {many} are {are}", "at least one of the {many} is {is}",
            "at least one {bare} is {is}",
        ),
        doubt=("aren't any of the {many} {are}", "isn't one of the {many} {is}"),
        bare=("any of the {many} {are}",),
    ),
    "none are": YesNo(
        ask=("are none of the {many} {are}", "is none of the {many} {is}", "is no {bare} {is}"),
        state=(
            "none of the {many} (is {is}|are {are})", "no {bare} is {is}", "not one of the {many} is {is}",
            "there are no {many} that are {are}",
        ),
        bare=("none of the {many} {are}",),
    ),
    "both are": YesNo(
        ask=(
            "are both {many} {are}", "are both of the {many} {are}", "are both the {many} {are}",
            "are the two {many} {are}", "are the {many} both {are}",
        ),
        state=(
            "both {many} are {are}", "the two {many} are {are}", "both of the {many} are {are}",
            "the {many} are both {are}",
        ),
        doubt=("aren't both {many} {are}", "aren't the two {many} {are}"),
        bare=("both {many} {are}",),
    ),
    "only": YesNo(
        ask=(
            "are there only {many}", "is everything {is1}", "are all [of] the (objects|things|shapes|items) {are1}",
            "do you see only {many}", "are there nothing but {many}", "does the {pic} (show|have) only {many}",
            "is everything [you see] {is1}", "are they all {are1}", "is it all {many}", "are there just {many}",
        ),
        state=(
            "there are only {many}", "everything is {is1}", "all [of] the (objects|things|shapes) are {are1}",
            "they are all {are1}", "there is nothing but {many}", "there are just {many}", "it's all {many}",
        ),
        doubt=("isn't everything {is1}", "aren't all the (things|objects|shapes) {are1}", "aren't they all {are1}"),
        bare=("only {many}", "just {many}", "nothing but {many}", "all {are1}"),
    ),
    "same": YesNo(
        ask=(
            "are the {many} identical in {attr}", "do all [the] {many} match in {attr}",
            "is every {bare} of the same {attr}", "are all [of] the {many} the same {attr}",
            "do all [the] {many} have the same {attr}", "are the {many} all [of] the same {attr}",
            "is the {attr} the same for all {many}", "do the {many} (share|have) one {attr}",
            "are the {many} of the same {attr}", "do the {many} match in {attr}", "are the {many} all one {attr}",
        ),
        state=(
            "all [of] the {many} are the same {attr}", "all {many} have the same {attr}",
            "the {many} are all the same {attr}", "the {many} have the same {attr}",
        ),
        doubt=("aren't all the {many} the same {attr}", "don't the {many} have the same {attr}"),
        bare=("{many} all the same {attr}", "same {attr} for all {many}"),
    ),
    "differ": YesNo(
        ask=(
            "do the {many} differ in {attr}", "are the {many} of different {attrs}",
            "do the {many} have different {attrs}", "is there more than one {attr} among the {many}",
            "are there different {attrs} among the {many}", "do the {many} come in different {attrs}",
            "does the {attr} of the {many} vary", "is there any variety in the {attrs} of the {many}",
            "have the {many} got different {attrs}",
        ),
        state=(
            "the {many} differ in {attr}", "the {many} have different {attrs}", "the {many} are of different {attrs}",
            "there is more than one {attr} among the {many}",
        ),
        doubt=("don't the {many} have different {attrs}", "aren't the {many} of different {attrs}"),
        bare=("{many} of different {attrs}", "different {attrs} among the {many}"),
    ),
    "repeats": YesNo(
        ask=(
            "are there two (things|objects|shapes) of the same {attr}",
            "do any two (things|objects|shapes) have the same {attr}",
            "do any of the (things|objects|shapes) share a {attr}",
            "does any {attr} (come up|appear) (twice|more than once)", "is any {attr} there more than once",
            "are any two of them the same {attr}", "is there a {attr} that repeats", "does a {attr} repeat",
            "do two of them match in {attr}", "have two (things|objects) got the same {attr}",
        ),
        state=(
            "two (things|objects|shapes) have the same {attr}", "one {attr} (comes up|appears) more than once",
            "at least two of them have the same {attr}", "two of them share a {attr}",
        ),
        doubt=("aren't there two (things|objects) of the same {attr}", "don't two of them have the same {attr}"),
        bare=("any two of the same {attr}", "any {attr} twice"),
    ),
    "sole": YesNo(
        ask=(
            "is {the} the only {bare2}", "is {the} the only one that is {is_2}", "would {the} be the only {bare2}",
            "is {the} the sole {bare2}", "is {the} the one and only {bare2}", "is nothing {is_2} but {the}",
        ),
        state=(
            "{the} is the only {bare2}", "{the} is the sole {bare2}", "there is no other {bare2} than {the}",
            "{the} is the only one that is {is_2}", "no other (thing|object|shape) is {is_2}, just {the}",
        ),
        doubt=("isn't {the} the only {bare2}",),
        tag="isn't it",
        bare=("{the} the only {bare2}",),
    ),
    "query colour": Wh(
        ask=(
            "what (hue|shade|tint) is {the}", "what is the hue of {the}", "in what colour did they draw {the}",
            "how would you name the colour of {the}", "what colour is {the}", "which colour is {the}",
            "what is the colour of {the}", "what's the colour of {the}", "which colour does {the} have",
            "what colour does {the} have", "{the} is what colour", "{the} is which colour", "what is {whose} colour",
            "what's {whose} colour", "in what colour is {the}", "what colour would you (say|call) {the} is",
            "what colour has {the} got", "how is {the} coloured", "what colour did they (paint|give|make) {the}",
            "what's the colour {the} has", "of what colour is {the}", "{the}: what colour is (it|that)",
            "{the}, what colour is it", "what colour's {the}",
        ),
        clause=(
            "what colour {the} is", "which colour {the} is", "the colour of {the}", "which colour {the} has",
            "what the colour of {the} is", "{whose} colour",
        ),
        bare=(
            "colour of {the}", "{bare} colour", "the colour of {the}", "{whose} colour", "{the}, colour",
            "{the} - what colour", "colour of {bare}",
        ),
        order=(
            "name the colour of {the}", "give me the colour of {the}", "identify the colour of {the}",
            "state the colour of {the}", "describe the colour of {the}",
        ),
    ),
    "query shape": Wh(
        ask=(
            "what geometric (shape|figure) is {the}", "what kind of (thing|object|figure) is {the}",
            "what shape do you see when you look at {the}", "what shape is {the}", "which shape is {the}",
            "what is the shape of {the}", "what's the shape of {the}", "what shape does {the} have", "what is {the}",
            "what's {the}", "what kind of shape is {the}", "{the} is what shape", "what form does {the} have",
            "what sort of (shape|thing|figure) is {the}", "what type of shape is {the}", "{the} is what [exactly]",
            "which (shape|figure) is {the}", "what would you call {the}", "how is {the} shaped",
            "what shape has {the} got", "what do you call {the}", "what (might|could) {the} be", "{the}: what is it",
            "{the}, what is it", "what shape's {the}",
        ),
        clause=(
            "what shape {the} is", "which shape {the} is", "the shape of {the}", "what {the} is",
            "what shape {the} has", "what kind of shape {the} is",
        ),
        bare=("shape of {the}", "{the}, what shape", "the shape of {the}", "{bare} shape", "{the}, shape"),
        order=(
            "name the shape of {the}", "name {the}", "identify {the}", "give me the shape of {the}",
            "identify the shape of {the}",
        ),
    ),
    "query size": Wh(
        ask=(
            "how large a thing is {the}", "is {the} on the big or the small side", "just how big is {the}",
            "how big is {the}", "what size is {the}", "is {the} large or small", "is {the} small or large",
            "is {the} big or small", "what is the size of {the}", "what's the size of {the}", "how large is {the}",
            "is {the} a (big|large) or a (small|little) one", "{the} is what size", "is {the} big or little",
            "which size does {the} have", "is {the} rather big or rather small", "how small is {the}",
            "is the size of {the} large or small", "would you call {the} big or small", "what size does {the} have",
            "what's {whose} size", "{the}: big or small", "is {the} tiny or big",
        ),
        clause=(
            "how big {the} is", "what size {the} is", "the size of {the}", "whether {the} is large or small",
            "how large {the} is", "if {the} is big or small",
        ),
        bare=(
            "size of {the}", "{bare} size", "{the}, size", "{the}, big or small", "large or small, {the}",
            "{bare}: big or small",
        ),
        order=("give me the size of {the}", "state the size of {the}", "say how big {the} is"),
    ),
    "query place": Wh(
        ask=(
            "in which (area|region|section|corner) of the {pic} is {the}", "in which (area|region|section) is {the}",
            "what spot is {the} (in|at)", "how is {the} placed in the {pic}",
            "towards which (side|edge|corner) is {the}", "where is {the}", "where's {the}",
            "where in the {pic} is {the}", "in which part of the {pic} is {the}", "where can i (find|see) {the}",
            "whereabouts is {the}", "where do (i|you) (find|see|spot) {the}",
            "what is the (position|location) of {the}", "what's the (position|location|place) of {the}",
            "where would i find {the}", "where is {the} (located|placed|positioned|to be found)",
            "where does {the} sit", "in what part of the {pic} is {the}", "where has {the} been (put|drawn|placed)",
            "at what spot is {the}", "which part of the {pic} is {the} in", "where did they put {the}",
            "{the} is where", "which corner or side is {the} (in|at|on)", "where should i look for {the}",
            "where exactly is {the}", "what's {whose} position", "where does one find {the}",
            "where do i have to look for {the}",
        ),
        clause=(
            "where {the} is", "where i can find {the}", "the (position|location) of {the}",
            "where in the {pic} {the} is", "where to (find|look for) {the}", "where you see {the}",
            "whereabouts {the} is", "where {the} is located",
        ),
        bare=(
            "position of {the}", "location of {the}", "{bare} (position|location)", "{the} - where", "{the}, where",
            "where {the}", "{bare}, where",
        ),
        order=(
            "locate {the}", "find {the}", "point out where {the} is", "give me the (position|location) of {the}",
            "describe the position of {the}", "find me {the}",
        ),
    ),
    "verify": YesNo(
        ask=(
            "is {the} on the {word} side@size", "is {the} {word} at all@size colour",
            "did they (paint|colour) {the} {word}@colour", "is it {is} that {the} is", "is {the} {is}",
            "is {the} really {is}", "is {the} actually {is}", "is {the} {is} or not",
            "does {the} look {word}@size colour", "is {whose} {attr} {word}@colour",
            "is the {attr} of {the} {word}@colour size", "is it {is}, {the}", "is {the} {is} in {attr}@colour",
            "would {the} be {is}", "is {the} by any chance {is}", "is {the} one of the {word} ones@colour size",
            "does {the} (appear|seem) to be {is}", "could {the} be {is}",
        ),
        state=(
            "{the} is {is}", "{the}'s {is}", "{the} looks {word}@size colour",
            "the {attr} of {the} is {word}@colour size", "{the} has the colour {word}@colour",
            "{the} appears to be {is}", "{the} seems to be {is}",
        ),
        doubt=("isn't {the} {is}", "is {the} not {is}", "isn't the {attr} of {the} {word}@colour size"),
        tag="isn't it",
        bare=("{the} {is}", "{the}: {is}", "{is}, {the}"),
    ),
    "choose colour": Wh(
        ask=(
            "is {the} {word} or {word2}", "which colour is {the}, {word} or {word2}",
            "{word} or {word2}: which is {the}", "is the colour of {the} {word} or {word2}",
            "what colour is {the}: {word} or {word2}", "is {the} {word} or is it {word2}",
            "would you say {the} is {word} or {word2}", "is {the} more (like) {word} or {word2}",
            "is {the} {word}, or rather {word2}",
        ),
        clause=("whether {the} is {word} or {word2}", "if {the} is {word} or {word2}"),
        bare=("{the}, {word} or {word2}", "{word} or {word2}, {the}", "{the}: {word} or {word2}"),
    ),
    "choose shape": Wh(
        ask=(
            "is {the} {is} or {is2}", "which shape is {the}, {is} or {is2}", "{is} or {is2}: what is {the}",
            "is the shape of {the} {is} or {is2}", "what is {the}: {is} or {is2}", "is {the} {is} or is it {is2}",
            "would you say {the} is {is} or {is2}", "is {the} more like {is} or {is2}",
            "is {the} {is}, or rather {is2}",
        ),
        clause=("whether {the} is {is} or {is2}", "if {the} is {is} or {is2}"),
        bare=("{the}, {is} or {is2}", "{the}: {word} or {word2}"),
    ),
    "tell": Wh(
        ask=(
            "what can you (say|tell me) about {the}", "what does {the} look like", "what is {the} like",
            "what do you know about {the}", "can you describe {the}", "could you describe {the} [for me]",
            "what's {the} like", "how would you describe {the}", "how does {the} look",
        ),
        clause=("what {the} looks like", "about {the}", "all about {the}", "what {the} is like"),
        bare=("details about {the}", "more about {the}"),
        order=(
            "describe {the}", "tell me about {the}", "tell me more about {the}", "give me details about {the}",
            "give me a description of {the}",
        ),
    ),
    "list": Wh(
        ask=(
            "which (objects|things|shapes|items) are {are1}", "what is {is1}", "which ones are {are1}",
            "what things are {are1}", "what (do you see|is there|can you see) that is {is1}", "what are the {many}",
            "which {many} are there", "what {many} are there", "what {many} do you see",
            "which of the (objects|things|shapes) are {are1}", "which {many} can you (see|name|find)", "what's {is1}",
            "which one is {is1}", "which (thing|object|shape) is {is1}", "what all is {is1}",
            "what else is there, other than {others}", "what is there besides {others}",
            "what do you see apart from {others}",
        ),
        clause=(
            "which (objects|things|shapes) are {are1}", "what is {is1}", "which {many} there are",
            "which ones are {are1}", "all the {many}", "everything that is {is1}",
        ),
        bare=("everything that is {is1}", "which {many}", "all {many}"),
        order=(
            "name [all] the {many}", "list [all] the {many}", "list everything that is {is1}", "find all {many}",
            "name everything that's {is1}", "point out the {many}", "show me the {many}", "name every {bare}",
        ),
    ),
    "values": Wh(
        ask=(
            "what (kinds|sorts|types) of {attrs} are there@shape", "which (kinds|sorts) of {attrs} do you see@shape",
            "what is the colour palette@colour", "which {attrs} make up the {pic}", "what {attrs} did they use",
            "what {attrs} are there", "which {attrs} are there", "what {attrs} do you see",
            "what {attrs} are the {many}", "which {attrs} can you see",
            "what {attrs} (appear|are used|are shown|come up)", "what {attr} are the {many}",
            "which {attrs} do the {many} have", "what are the {attrs} of the {many}", "what {attrs} do the {many} have",
            "what different {attrs} are there", "of what {attr} are the {many}", "in which {attrs} are the {many}",
        ),
        clause=(
            "which {attrs} there are", "what {attrs} you see", "the {attrs} of the {many}",
            "what {attr} the {many} are", "which {attrs} the {many} have", "all the {attrs}",
        ),
        bare=("{attrs} of the {many}", "all {attrs}", "the {attrs}", "{attrs} used", "which {attrs}"),
        order=(
            "name [all] the {attrs}", "list [all] the {attrs}", "list the {attrs} of the {many}",
            "give me [all] the {attrs}", "name every {attr} [you see]",
        ),
    ),
    "bigger": Wh(
        ask=(
            "which is {larger}, {the} or {the2}", "what is {larger}: {the} or {the2}",
            "which one is {larger}, {the} or {the2}", "{the} or {the2}: which is {larger}",
            "which of the two is {larger}, {the} or {the2}", "is {the} or {the2} {larger}",
            "which is the {larger} one, {the} or {the2}", "what's {larger}, {the} or {the2}",
            "is it {the} or {the2} that is {larger}", "between {the} and {the2}, which is {larger}",
            "of {the} and {the2}, which one is {larger}", "which is {larger} out of {the} and {the2}",
        ),
        clause=(
            "which is {larger}, {the} or {the2}", "whether {the} or {the2} is {larger}",
            "which one is {larger}: {the} or {the2}",
        ),
        bare=("{the} or {the2}, which is {larger}", "{larger}: {the} or {the2}"),
    ),
    "is bigger": YesNo(
        ask=(
            "is {the} {larger} than {the2}", "is {the} {larger} compared to {the2}",
            "is {the} a bit {larger} than {the2}", "does {the} look {larger} than {the2}",
            "is {the} the {larger} one compared with {the2}", "is {the} of {larger} size than {the2}",
        ),
        state=("{the} is {larger} than {the2}", "{the} looks {larger} than {the2}"),
        doubt=("isn't {the} {larger} than {the2}", "is {the} not {larger} than {the2}"),
        tag="isn't it",
        bare=("{the} {larger} than {the2}",),
    ),
    "alike": YesNo(
        ask=(
            "are {the} and {the2} the same {attr}", "do {the} and {the2} have the same {attr}",
            "is {the} the same {attr} as {the2}", "does {the} have the same {attr} as {the2}",
            "is the {attr} of {the} the same as that of {the2}", "are {the} and {the2} of the same {attr}",
            "do {the} and {the2} share (the same|a) {attr}", "do {the} and {the2} match in {attr}",
            "are {the} and {the2} equal in {attr}", "is {the} [of] the {attr} of {the2}",
            "are {the} and {the2} alike in {attr}", "is {the} as (big|large) as {the2}@size",
        ),
        state=(
            "{the} and {the2} are the same {attr}", "{the} and {the2} have the same {attr}",
            "{the} has the same {attr} as {the2}", "{the} is the same {attr} as {the2}",
            "{the} and {the2} share the same {attr}",
        ),
        doubt=(
            "aren't {the} and {the2} the same {attr}", "don't {the} and {the2} have the same {attr}",
            "isn't {the} the same {attr} as {the2}",
        ),
        bare=("{the} and {the2}, same {attr}", "same {attr}, {the} and {the2}"),
    ),
}  # fmt: skip
