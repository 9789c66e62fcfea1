"""What people say who ask how many there are, and of what there are more. The slots are those of `wordings_things`."""

from __future__ import annotations

from minichat.scenes.speech.frames import Wh, Wording, YesNo

WORDINGS: dict[str, Wording] = {
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
