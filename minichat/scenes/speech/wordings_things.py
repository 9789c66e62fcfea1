"""What people say who ask about the things themselves: whether they are there, how many they are, what they are like.

{the}, {a}, {many}, {bare}, {adj}, {whose}: phrases for the first set, {the2} … for the second; {is}: a value after
"is" ("red", "a star"), {are}: after "are" ("red", "stars"), {word}: alone; {n}: a number.
"""

from __future__ import annotations

from minichat.scenes.speech.frames import Wh, Wording, YesNo

WORDINGS: dict[str, Wording] = {
    "exists": YesNo(
        ask=(
            "is there {a}", "are there any {many}", "is there any {bare}", "do you see {a}", "do you see any {many}",
            "can you (see|find|spot) {a}", "can you (see|find|spot) any {many}",
            "does the {pic} (show|have|contain) {a}", "is {a} there", "are any {many} (there|visible|shown|present)",
            "is {a} (visible|present|shown)", "is there anything {adj}", "do you see anything {adj}",
            "does it (have|show|contain) {a}", "is there at least one {bare}", "have you got {a}",
            "is there such a thing as {a}", "did anyone draw {a}", "are there {many}", "can {a} be seen",
            "have we got any {many}", "does this (have|show) any {many}",
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
            "{a}", "any {many}", "any {bare}", "{many}", "anything {adj}", "something {adj}", "got any {many}",
            "any sign of {a}", "see {a}", "see any {many}",
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
            "are all [of] the {many} the same {attr}", "do all [the] {many} have the same {attr}",
            "are the {many} all [of] the same {attr}", "is the {attr} the same for all {many}",
            "do the {many} (share|have) one {attr}", "are the {many} of the same {attr}",
            "do the {many} match in {attr}", "are the {many} all one {attr}",
        ),
        state=(
            "all [of] the {many} are the same {attr}", "all {many} have the same {attr}",
            "the {many} are all the same {attr}", "the {many} have the same {attr}",
        ),
        doubt=("aren't all the {many} the same {attr}", "don't the {many} have the same {attr}"),
        bare=("{many} all the same {attr}", "same {attr} for all {many}"),
    ),
    "count": Wh(
        ask=(
            "how many {many} are there", "how many {many} do you see", "how many {many} can you (see|count|find|spot)",
            "how many {many} does the {pic} (have|show|contain)", "what is the number of {many}",
            "what's the number of {many}", "how many {many} are (shown|visible|drawn)", "how many {many} have we got",
            "how many {many} [do] you see", "how many of the (objects|things|shapes) are {are1}", "how many {many}",
            "how many are {are1}", "in total, how many {many} are there", "what's the total number of {many}",
            "how many {many} are there altogether", "how many {many} is that", "how many {many} in (all|total)",
            "there are how many {many}", "how many times do you see {a}", "what number of {many} is there",
        ),
        clause=(
            "how many {many} there are", "how many {many} you (see|can see|count)", "the number of {many}",
            "how many {many} the {pic} has", "how many {many} are there", "how many {many} it shows",
        ),
        bare=(
            "number of {many}", "{many}, how many", "{many} count", "count of {many}", "total {many}",
            "amount of {many}",
        ),
        order=(
            "count the {many}", "count [up] all [the] {many}", "give me the number of {many}", "count {many}",
            "give a count of the {many}", "add up the {many}", "put a number on the {many}",
        ),
    ),
    "number is": YesNo(
        ask=(
            "are there {how} {n} {many}", "do you see {how} {n} {many}", "can you see {how} {n} {many}",
            "does the {pic} have {how} {n} {many}", "is the number of {many} {how} {n}",
            "do you count {how} {n} {many}",
        ),
        state=(
            "there are {how} {n} {many}", "i see {how} {n} {many}", "i count {how} {n} {many}",
            "the {pic} has {how} {n} {many}", "the number of {many} is {how} {n}",
        ),
        doubt=("aren't there {how} {n} {many}", "don't you see {how} {n} {many}"),
        tag="aren't there",
        bare=("{how} {n} {many}",),
    ),
    "number is one": YesNo(
        ask=(
            "is there {how} one {bare}", "do you see {how} one {bare}", "can you see {how} one {bare}",
            "does the {pic} (have|show) {how} one {bare}", "is there {how} a single {bare}@exactly",
        ),
        state=(
            "there is {how} one {bare}", "i see {how} one {bare}", "there's {how} one {bare}",
            "the {pic} has {how} one {bare}",
        ),
        doubt=("isn't there {how} one {bare}",),
        tag="isn't there",
        bare=("{how} one {bare}",),
    ),
    "more": YesNo(
        ask=(
            "are there {more} {many} than {many2}", "do you see {more} {many} than {many2}",
            "does the {pic} have {more} {many} than {many2}", "is the number of {many} {greater} than that of {many2}",
            "do the {many} outnumber the {many2}@more", "are the {many} outnumbered by the {many2}@fewer",
            "can you see {more} {many} than {many2}",
        ),
        state=(
            "there are {more} {many} than {many2}", "i see {more} {many} than {many2}",
            "the {many} outnumber the {many2}@more",
        ),
        doubt=("aren't there {more} {many} than {many2}",),
        tag="aren't there",
        bare=("{more} {many} than {many2}",),
    ),
    "as many": YesNo(
        ask=(
            "are there as many {many} as {many2}", "is the number of {many} the same as the number of {many2}",
            "are there equally many {many} and {many2}", "are there the same number of {many} and {many2}",
            "is there an equal number of {many} and {many2}", "do you see as many {many} as {many2}",
            "are there just as many {many} as {many2}", "does the number of {many} equal the number of {many2}",
        ),
        state=(
            "there are as many {many} as {many2}", "there are equally many {many} and {many2}",
            "the {many} are as many as the {many2}", "the number of {many} equals the number of {many2}",
        ),
        doubt=("aren't there as many {many} as {many2}",),
        tag="aren't there",
        bare=("as many {many} as {many2}", "same number of {many} and {many2}"),
    ),
    "which more": Wh(
        ask=(
            "are there more {many} or [more] {many2}@more", "which are there {more} of, {many} or {many2}",
            "do you see more {many} or [more] {many2}@more", "what are there {more} of: {many} or {many2}",
            "are there fewer {many} or [fewer] {many2}@fewer", "which is there {more} of, {many} or {many2}",
            "{many} or {many2}: which are there {more} of", "what is {commoner}, {many} or {many2}",
        ),
        clause=(
            "whether there are more {many} or [more] {many2}@more", "which there are {more} of, {many} or {many2}",
            "if there are fewer {many} or {many2}@fewer",
        ),
        bare=("{more} {many} or [{more}] {many2}",),
    ),
    "how many more": Wh(
        ask=(
            "how many more {many} than {many2} are there", "how many more {many} are there than {many2}",
            "by how many do the {many} outnumber the {many2}", "how many more {many} do you see than {many2}",
        ),
        clause=("how many more {many} than {many2} there are", "how many more {many} there are than {many2}"),
        bare=("how many more {many} than {many2}",),
    ),
    "kinds": Wh(
        ask=(
            "how many {attrs} are there@colour size", "how many different {attrs} (are there|do you see)",
            "how many {attrs} (do|can) you (see|count)@colour size", "how many [different] {attrs} do the {kind} have",
            "what's the number of different {attrs}", "how many kinds of {attr} are there",
            "how many distinct {attrs} are there [among the {kind}]", "in how many different {attrs} are the {kind}",
        ),
        clause=(
            "how many different {attrs} there are", "how many different {attrs} you see",
            "the number of different {attrs}",
        ),
        bare=("number of different {attrs}", "how many different {attrs}", "how many {attrs}@colour size"),
        order=("count the different {attrs}", "count the {attrs}@colour size",),
    ),
    "common": Wh(
        ask=(
            "what is the most (common|frequent) {attr}", "what's the most common {attr}",
            "which {attr} is [the] most common", "which {attr} (appears|occurs|comes up) most [often]",
            "which {attr} do you see most [often]", "what {attr} are most of the {kind}",
            "which {attr} is there most of", "what {attr} is used the most",
            "which {attr} is the most (popular|frequent) [one]", "what {attr} shows up the most",
        ),
        clause=(
            "which {attr} is most common", "what the most common {attr} is", "which {attr} appears most often",
            "the most (common|frequent) {attr}",
        ),
        bare=("most common {attr}", "most frequent {attr}", "commonest {attr}"),
        order=("name the most common {attr}", "give me the most frequent {attr}"),
    ),
    "query colour": Wh(
        ask=(
            "what colour is {the}", "which colour is {the}", "what is the colour of {the}",
            "what's the colour of {the}", "which colour does {the} have", "what colour does {the} have",
            "{the} is what colour", "{the} is which colour", "what is {whose} colour", "what's {whose} colour",
            "in what colour is {the}", "what colour would you (say|call) {the} is", "what colour has {the} got",
            "how is {the} coloured", "what colour did they (paint|give|make) {the}", "what's the colour {the} has",
            "of what colour is {the}", "{the}: what colour is (it|that)", "{the}, what colour is it",
            "what colour's {the}",
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
            "what shape is {the}", "which shape is {the}", "what is the shape of {the}", "what's the shape of {the}",
            "what shape does {the} have", "what is {the}", "what's {the}", "what kind of shape is {the}",
            "{the} is what shape", "what form does {the} have", "what sort of (shape|thing|figure) is {the}",
            "what type of shape is {the}", "{the} is what [exactly]", "which (shape|figure) is {the}",
            "what would you call {the}", "how is {the} shaped", "what shape has {the} got", "what do you call {the}",
            "what (might|could) {the} be", "{the}: what is it", "{the}, what is it", "what shape's {the}",
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
            "where is {the}", "where's {the}", "where in the {pic} is {the}", "in which part of the {pic} is {the}",
            "where can i (find|see) {the}", "whereabouts is {the}", "where do (i|you) (find|see|spot) {the}",
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
            "is {the} {is}", "is {the} really {is}", "is {the} actually {is}", "is {the} {is} or not",
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
