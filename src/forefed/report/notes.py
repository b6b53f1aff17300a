"""What the numbers of a report mean, and what they do not."""

NOTES: tuple[tuple[str, str], ...] = (
    (
        "Accuracy ±",
        "Share of test texts with the right label. The ± is the 95 % interval that comes from the "
        "number of test texts (Agresti and Coull); how much another seed would change is not in "
        "it. One run is one seed.",
    ),
    (
        "F1, exact match",
        "Of answers to questions: the words that an answer shares with the right one, and the "
        "share of answers with the same words; case, punctuation and articles do not count "
        "(SQuAD). Where there is no answer, only none is right.",
    ),
    (
        "Best",
        "The best of all evaluations, chosen by looking at the test set, and therefore too good. "
        "The final value is the one to quote.",
    ),
    (
        "Most frequent class",
        "The accuracy of always answering the label that is most frequent in the test set. A "
        "result that is not clearly above it has learnt nothing that shows. For answers to "
        "questions: the F1 of never giving one, where some questions have none.",
    ),
    (
        "Untrained",
        "The same model and test set before round 1: a pretrained body, and for classification a "
        "new head.",
    ),
    (
        "Bits per byte",
        "What the model needs to encode a byte of test text; comparable across tokenizers, lower "
        "is better.",
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
