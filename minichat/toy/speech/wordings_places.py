"""What people say who ask about places, about numbers, and about which comes first along a line."""

from __future__ import annotations

from minichat.toy.speech.grammar import Wh, Wording, YesNo

# --- What people say who ask about places, about how things lie to each other, and about which comes first along a
# line.
#
# Beside the slots of `wordings_things`: {at}: a place with its preposition; {half}: a half of the picture; {to}: a
# direction; {further}: its comparative; {first}: "the leftmost star"; {what}: "colour", "shape" or "size".


PLACE_WORDINGS: dict[str, Wording] = {
    "verify place": YesNo(
        ask=(
            "is {the} {at}", "is {the} located {at}", "do you see {the} {at}", "is {the} to be found {at}",
            "does {the} sit {at}", "is it {the} that is {at}", "will i find {the} {at}", "is {the} placed {at}",
            "is {the} somewhere {at}", "can {the} be found {at}",
        ),
        state=("{the} is {at}", "{the}'s {at}", "{the} sits {at}", "{the} is located {at}"),
        doubt=("isn't {the} {at}", "is {the} not {at}"),
        tag="isn't it",
        bare=("{the} {at}",),
    ),
    "verify half": YesNo(
        ask=(
            "is {the} {half}", "is {the} located {half}", "do you see {the} {half}", "does {the} lie {half}",
            "is {the} somewhere {half}", "is {the} to be found {half}", "will i find {the} {half}",
        ),
        state=("{the} is {half}", "{the}'s {half}", "{the} lies {half}"),
        doubt=("isn't {the} {half}", "is {the} not {half}"),
        tag="isn't it",
        bare=("{the} {half}",),
    ),
    "choose half": Wh(
        ask=(
            "is {the} in the {word} half or in the {word2} half", "is {the} in the {word} or [the] {word2} half",
            "which half is {the} in, {word} or {word2}", "in which half is {the}: {word} or {word2}",
            "is {the} on the {word} or the {word2}@left right", "is {the} on the {word} side or the {word2} side",
            "is {the} to the {word} or to the {word2}@left right", "{word} or {word2} half: where is {the}",
            "is {the} at the {word} or the {word2}@top bottom", "is {the} nearer the {word} or the {word2}",
            "on which side is {the}, {word} or {word2}", "which side is {the} on, {word} or {word2}",
        ),
        clause=(
            "which half {the} is in, {word} or {word2}", "whether {the} is in the {word} or the {word2} half",
            "if {the} is on the {word} or the {word2}@left right",
        ),
        bare=("{the}, {word} or {word2} half", "{the}: {word} or {word2}"),
    ),
    "at": Wh(
        ask=(
            "what is {at}", "what's {at}", "what do you see {at}", "which (object|thing|shape) is {at}",
            "what can [you] (see|find) {at}", "what is there {at}", "what lies {at}", "what have we got {at}",
            "which (thing|shape|object) do you see {at}", "what sits {at}", "{at}, what is there", "{at} is what",
            "what (shape|thing|object) is [there] {at}", "what (can be seen|is shown|is drawn) {at}",
            "what did they (put|draw) {at}", "what is the (thing|object|shape) {at}",
        ),
        clause=(
            "what is {at}", "what you see {at}", "what there is {at}", "which (object|thing|shape) is {at}",
            "what's {at}",
        ),
        bare=("{at}", "the (thing|object|shape) {at}", "object {at}"),
        order=(
            "name the (thing|object|shape) {at}", "name what is {at}", "describe what is {at}",
            "identify the object {at}",
        ),
    ),
    "at what": Wh(
        ask=(
            "what {what} is the (thing|object|shape|item|one) {at}",
            "what is the {what} of the (thing|object|shape) {at}", "which {what} does the (thing|object) {at} have",
            "the (thing|object|shape) {at} is what {what}", "what's the {what} of the (thing|object|item) {at}",
            "what {what} is {at}",
        ),
        clause=("what {what} the (thing|object|shape) {at} is", "the {what} of the (thing|object|shape) {at}"),
        bare=("{what} of the (thing|object|shape) {at}",),
        order=("name the {what} of the (thing|object) {at}",),
    ),
    "anything at": YesNo(
        ask=(
            "is there anything {at}", "is there something {at}", "do you see anything {at}", "is anything {at}",
            "is there (an object|a thing|a shape) {at}", "can you see anything {at}", "did they draw anything {at}",
            "are there any (objects|things|shapes) {at}", "is something [drawn] {at}", "have we got anything {at}",
        ),
        state=("there is something {at}", "there's (a thing|an object|a shape) {at}", "something is {at}"),
        doubt=("isn't there anything {at}", "isn't there something {at}", "isn't anything {at}"),
        tag="isn't there",
        bare=("anything {at}", "something {at}"),
    ),
    "empty at": YesNo(
        ask=("is there nothing {at}", "is it empty {at}", "is the space {at} empty", "is the spot {at} free"),
        state=(
            "there is nothing {at}", "there's nothing {at}", "there isn't anything {at}", "nothing is {at}",
            "it is empty {at}",
        ),
        bare=("nothing {at}",),
    ),
    "first": Wh(
        ask=(
            "what is {first}", "which is {first}", "which (object|thing|shape) is {first}", "what's {first}",
            "which one is {first}", "{first} is what", "what do you see as {first}", "what would be {first}",
        ),
        clause=("what {first} is", "which is {first}", "which one is {first}"),
        bare=("{first}",),
        order=("name {first}", "identify {first}", "find {first}", "point out {first}"),
    ),
    "first what": Wh(
        ask=(
            "what {what} is {first}", "which {what} is {first}", "what is the {what} of {first}",
            "what's the {what} of {first}", "{first} is what {what}", "what {what} does {first} have",
            "which {what} does {first} have", "of what {what} is {first}", "what {what} has {first} got",
            "{first}: what {what} is it",
        ),
        clause=("what {what} {first} is", "the {what} of {first}", "which {what} {first} has"),
        bare=("{what} of {first}", "{first}, what {what}", "the {what} of {first}"),
        order=("name the {what} of {first}", "give me the {what} of {first}"),
    ),
    "first place": Wh(
        ask=(
            "where is {first}", "where's {first}", "where in the {pic} is {first}", "where can i find {first}",
            "in which part of the {pic} is {first}", "where do you see {first}",
        ),
        clause=("where {first} is", "where to find {first}"),
        bare=("position of {first}", "{first}, where"),
        order=("locate {first}",),
    ),
    "is first": YesNo(
        ask=("is {the} {first}", "would {the} be {first}", "is {first} {the}", "is {the} really {first}"),
        state=("{the} is {first}", "{first} is {the}"),
        doubt=("isn't {the} {first}", "isn't {first} {the}"),
        tag="isn't it",
        bare=("{the} {first}",),
    ),
    "beside": YesNo(
        ask=(
            "is {the} {to} {the2}", "does {the} lie {to} {the2}", "do you see {the} {to} {the2}",
            "would you find {the} {to} {the2}", "is {the} placed {to} {the2}", "is {the} somewhere {to} {the2}",
            "is {the} drawn {to} {the2}", "seen from {the2}, is {the} {to} it", "is {the} {further} than {the2}",
            "does {the} sit {to} {the2}", "is {the} located {to} {the2}",
        ),
        state=(
            "{the} is {to} {the2}", "{the} lies {to} {the2}", "{the} sits {to} {the2}", "{the}'s {to} {the2}",
        ),
        doubt=("isn't {the} {to} {the2}", "is {the} not {to} {the2}"),
        tag="isn't it",
        bare=("{the} {to} {the2}",),
    ),
    "choose beside": Wh(
        ask=(
            "is {the} {to} or {tov} {the2}", "does {the} lie {to} or {tov} {the2}", "is {the} {to} {the2} or {tov} it",
            "which is it: is {the} {to} or {tov} {the2}", "would you say {the} is {to} or {tov} {the2}",
            "is {the} {further} or {furtherv} than {the2}@above below",
        ),
        clause=("whether {the} is {to} or {tov} {the2}", "if {the} is {to} or {tov} {the2}"),
        bare=("{the}: {to} or {tov} {the2}",),
    ),
    "where from": Wh(
        ask=(
            "where is {the} (relative|in relation|compared) to {the2}", "where is {the}, seen from {the2}",
            "where does {the} lie relative to {the2}", "on which side of {the2} is {the}",
            "which side of {the2} is {the} on", "in which direction from {the2} is {the}",
            "how is {the} placed relative to {the2}", "which way from {the2} to {the}",
            "looking from {the2}, where is {the}", "where is {the} with respect to {the2}",
            "which way do i go from {the2} to get to {the}", "what is the position of {the} relative to {the2}",
            "how do {the} and {the2} lie to each other", "from {the2}, where is {the}",
        ),
        clause=(
            "where {the} is relative to {the2}", "on which side of {the2} {the} is", "where {the} is, seen from {the2}",
            "which side of {the2} {the} is on",
        ),
        bare=("{the} relative to {the2}", "position of {the} relative to {the2}"),
    ),
    "what beside": Wh(
        ask=(
            "what does {the} have {itsside}", "{the} has what {itsside}", "what is {to} {the}", "what's {to} {the}",
            "which (object|thing|shape) is {to} {the}", "what do you see {to} {the}", "what lies {to} {the}",
            "what is there {to} {the}", "what have you got {to} {the}", "which things are {to} {the}",
            "what (can you see|is drawn|is shown) {to} {the}", "what sits {to} {the}",
            "what (objects|things|shapes) are {to} {the}", "what comes {to} {the}",
        ),
        clause=(
            "what is {to} {the}", "what you see {to} {the}", "what there is {to} {the}",
            "which (thing|object) is {to} {the}",
        ),
        bare=("{to} {the}", "the thing {to} {the}", "everything {to} {the}"),
        order=("name what is {to} {the}", "name the thing {to} {the}", "list everything {to} {the}"),
    ),
    "what beside what": Wh(
        ask=(
            "what {what} is the (thing|object|shape|one) {to} {the}",
            "what is the {what} of the (thing|object|shape) {to} {the}",
            "which {what} does the (thing|object) {to} {the} have",
            "what's the {what} of the (thing|object) {to} {the}", "the (thing|object) {to} {the} has what {what}",
        ),
        clause=("what {what} the (thing|object|shape) {to} {the} is", "the {what} of the (thing|object) {to} {the}"),
        bare=("{what} of the (thing|object|shape) {to} {the}",),
    ),
    "anything beside": YesNo(
        ask=(
            "does {the} have anything {itsside}", "has {the} got something {itsside}", "is there anything {to} {the}",
            "is anything {to} {the}", "do you see anything {to} {the}", "is there something {to} {the}",
            "are there any (things|objects|shapes) {to} {the}", "is there (a thing|an object|a shape) {to} {the}",
            "does anything lie {to} {the}",
        ),
        state=("there is something {to} {the}", "there's something {to} {the}", "something is {to} {the}"),
        doubt=("isn't there anything {to} {the}", "isn't there something {to} {the}"),
        tag="isn't there",
        bare=("anything {to} {the}",),
    ),
    "count beside": Wh(
        ask=(
            "how many (things|objects) does {the} have {itsside}",
            "how many (things|objects|shapes|items) are {to} {the}",
            "how many (things|objects|shapes) do you see {to} {the}", "how many are {to} {the}",
            "how many (things|objects) lie {to} {the}", "what's the number of (things|objects) {to} {the}",
            "how many (objects|shapes) are there {to} {the}",
        ),
        clause=("how many (things|objects|shapes) are {to} {the}", "how many there are {to} {the}"),
        bare=("number of (things|objects|shapes) {to} {the}", "how many {to} {the}"),
        order=("count the (things|objects|shapes) {to} {the}", "count what is {to} {the}"),
    ),
    "nearest": Wh(
        ask=(
            "what is (closest|nearest) to {the}", "which (object|thing|shape|one) is (closest|nearest) to {the}",
            "what's (closest|nearest) to {the}", "what is next to {the}", "what is right next to {the}",
            "what's near {the}", "which (thing|object|shape) is the (closest|nearest) to {the}", "what is beside {the}",
            "what's beside {the}", "what is {whose} (nearest|closest) neighbour",
            "what lies (closest|nearest) to {the}", "what is near {the}", "which thing is next to {the}",
            "what do you see next to {the}", "what sits beside {the}", "what is (adjacent|close) to {the}",
            "who is {whose} (closest|nearest) neighbour",
        ),
        clause=(
            "what is (closest|nearest) to {the}", "which (thing|object|shape) is (closest|nearest) to {the}",
            "what is next to {the}", "what's beside {the}",
        ),
        bare=("(closest|nearest) to {the}", "next to {the}", "the thing (closest|nearest) to {the}", "beside {the}"),
        order=(
            "name what is (closest|nearest) to {the}", "name the thing next to {the}", "find what is nearest to {the}",
        ),
    ),
    "nearest what": Wh(
        ask=(
            "what {what} is the (thing|object|shape|one) (closest|nearest|next) to {the}",
            "what is the {what} of the (thing|object|shape) (closest|nearest|next) to {the}",
            "what {what} is the (thing|object) beside {the}",
            "what's the {what} of {whose} (nearest|closest) neighbour",
        ),
        clause=("what {what} the (thing|object) (closest|nearest|next) to {the} is",
                "the {what} of the thing (nearest|closest|next) to {the}"),
        bare=("{what} of the (thing|object) (closest|nearest|next) to {the}",),
    ),
    "next to": YesNo(
        ask=(
            "is {the} (next|close) to {the2}", "is {the} near {the2}",
            "are {the} and {the2} close [together|to each other]", "are {the} and {the2} next to each other",
            "is {the} beside {the2}", "are {the} and {the2} neighbours", "is {the} right by {the2}",
            "is {the} anywhere near {the2}",
        ),
        state=(
            "{the} is (next|close) to {the2}", "{the} is near {the2}", "{the} and {the2} are close together",
            "{the} and {the2} are next to each other",
        ),
        doubt=("isn't {the} next to {the2}", "aren't {the} and {the2} close together"),
        bare=("{the} next to {the2}",),
    ),
    "between": Wh(
        ask=(
            "what is sandwiched between {the} and {the2}", "what separates {the} and {the2}",
            "what is in the middle of {the} and {the2}", "what (thing|object|shape) stands between {the} and {the2}",
            "what is between {the} and {the2}", "what's between {the} and {the2}", "what lies between {the} and {the2}",
            "which (object|thing|shape) is between {the} and {the2}", "what do you see between {the} and {the2}",
            "what is in between {the} and {the2}", "what sits between {the} and {the2}",
            "what is there between {the} and {the2}", "what stands between {the} and {the2}",
            "what comes between {the} and {the2}",
        ),
        clause=(
            "what is between {the} and {the2}", "what lies between {the} and {the2}",
            "what you see between {the} and {the2}",
        ),
        bare=("between {the} and {the2}", "the thing between {the} and {the2}"),
        order=("name what is between {the} and {the2}", "name the thing between {the} and {the2}"),
    ),
    "is between": YesNo(
        ask=(
            "is {the} between {the2} and {the3}", "does {the} lie between {the2} and {the3}",
            "is {the} in between {the2} and {the3}", "do you see {the} between {the2} and {the3}",
        ),
        state=("{the} is between {the2} and {the3}", "{the} lies between {the2} and {the3}"),
        doubt=("isn't {the} between {the2} and {the3}",),
        tag="isn't it",
        bare=("{the} between {the2} and {the3}",),
    ),
    "further": Wh(
        ask=(
            "which is {placed}, {the} or {the2}", "which one is {placed}: {the} or {the2}",
            "is it {the} or {the2} that is {placed}", "which of them is {placed}, {the} or {the2}",
            "which is {further}, {the} or {the2}", "what is {further}: {the} or {the2}", "is {the} or {the2} {further}",
            "{the} or {the2}: which is {further}", "which one is {further}, {the} or {the2}",
            "which of the two is {further}, {the} or {the2}", "which lies {further}, {the} or {the2}",
            "of {the} and {the2}, which is {further}", "what's {further}, {the} or {the2}",
            "which sits {further}, {the} or {the2}",
        ),
        clause=("which is {further}, {the} or {the2}", "whether {the} or {the2} is {further}"),
        bare=("{placed}: {the} or {the2}", "{the} or {the2}, which is {further}", "{further}: {the} or {the2}"),
    ),
    "order": Wh(
        ask=(
            "what (is there|do you see), {along}", "what (shapes|objects|things) are there {along}",
            "in what order are the (things|shapes|objects), {along}",
            "what is the order of the (objects|things) {along}", "what do you see going {along}",
        ),
        clause=("what there is {along}", "what you see {along}", "the (shapes|objects|things) {along}"),
        bare=("everything {along}", "all (shapes|objects) {along}"),
        order=(
            "name the (things|objects|shapes) {along}", "list the (things|objects|shapes) {along}",
            "go through the (objects|things) {along}", "read them out {along}", "list everything {along}",
        ),
    ),
}  # fmt: skip


# --- What people say who ask how many there are, and of what there are more. The slots are those of `wordings_things`.


NUMBER_WORDINGS: dict[str, Wording] = {
    "count choose": Wh(
        ask=(
            "are there {n1} or {n2} {many}", "do you see {n1} or {n2} {many}", "is it {n1} or {n2} {many}",
            "how many {many} are there, {n1} or {n2}", "{n1} or {n2}: how many {many} are there",
            "can you see {n1} or {n2} {many}", "are there {n1} or rather {n2} {many}",
            "is the number of {many} {n1} or {n2}", "does the {pic} have {n1} or {n2} {many}",
        ),
        clause=(
            "whether there are {n1} or {n2} {many}", "if there are {n1} or {n2} {many}",
            "how many {many} there are, {n1} or {n2}",
        ),
        bare=("{n1} or {n2} {many}", "{many}: {n1} or {n2}"),
    ),
    "count": Wh(
        ask=(
            "of the (shapes|objects|things), how many are {are1}", "how many of them are {are1}",
            "what is the count of {many}", "how many {many} would you say there are",
            "how many {many} (in there|on it)", "if i take away {others}, how many (are left|remain)",
            "not counting {others}, how many (objects|things|shapes) are there",
            "how many (things|objects|shapes) remain without {others}", "{many}: how many do you see",
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
            "tally the {many}", "count how many {many} there are", "count the {many}", "count [up] all [the] {many}",
            "give me the number of {many}", "count {many}", "give a count of the {many}", "add up the {many}",
            "put a number on the {many}",
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
}  # fmt: skip
