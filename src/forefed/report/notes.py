"""What the numbers of a report mean, and what they do not."""

NOTES: tuple[tuple[str, str], ...] = (
    (
        "95 % interval",
        "Where the value would lie on other test texts of the same kind (Wilson's for shares); how "
        "much another seed would change is not in it. One run is one seed.",
    ),
    (
        "Best",
        "The best of all evaluations, chosen by looking at the test set, and therefore too good. "
        "The final value is the one to quote.",
    ),
    (
        "The answer that costs nothing",
        "The class that is most frequent in training, the labels or the score that fit the "
        "training rows best, or no answer at all. A result that is not clearly better has learnt "
        "nothing that shows.",
    ),
    (
        "Untrained",
        "The same model and test set before round 1: a pretrained body, and for classification a "
        "new head.",
    ),
    (
        "Bytes up, down",
        "Lengths of the encoded messages as they are sent, answers of clients (up) and orders of "
        "the server (down); counted, not estimated. The base model's weights and what a network "
        "adds around a message are not in them.",
    ),
    (
        "Forward-equivalents",
        "Forward passes over one example. A tangent pass counts as one more, and so does a "
        "backward pass. Longer texts cost more: compare runs of one model and one text length.",
    ),
    (
        "Memory above weights",
        "The largest amount that any client held at once beyond the model's weights, measured "
        "in its first local step of a round. Resident memory is the whole process's, libraries and "
        "simulated server included.",
    ),
    (
        "Wall time",
        "Time on the machine of the record, with the clients of a round simulated one after "
        "another unless the settings say otherwise; not the time of a real federation. Where the "
        "environment says rehearsed, slopes were found by backward passes, and forward mode would "
        "have taken longer.",
    ),
    (
        "Lost answers",
        "Orders without a usable answer. Lost clients are left out of the mean; nothing is "
        "filled in for them.",
    ),
)
