#!/usr/bin/env python3
"""Writes the demo's data: SYNTHETIC hospital triage notes, each with its department.

No patient is in it: every note is put together from the lists below by a seeded generator, so the
same seed gives the same files everywhere. Four institutions see three departments of eight each and
write in their own way; the test set has every department in every institution's way of writing.
Every symptom keeps one of its details for the test set, so no test sentence occurs in training.

  demo_data.py OUT [--seed N] [--test-rows N] [--val-rows N] [--scale F]

Files: OUT/north.jsonl, east.jsonl, south.jsonl, west.jsonl, test.jsonl, of rows
{"prompt", "completion"}. With --val-rows also val.jsonl, to choose settings by: all departments and
ways of writing like the test set, but only pairs of symptom and detail that no test row has.
"""

import argparse
import json
import os
import random

# department: symptoms as (in words, in ward shorthand), and details that go with any of them.
DEPARTMENTS = {
    "CARD": (
        [
            ("crushing chest pain", "crushing CP"),
            ("pain spreading to the left arm", "pain rad L arm"),
            ("a racing heartbeat", "palps"),
            ("an irregular pulse", "irreg pulse"),
            ("chest tightness when climbing stairs", "exert chest tightness"),
            ("fainting with a slow pulse", "syncope, brady"),
            ("swollen ankles with a murmur", "ankle oedema + murmur"),
        ],
        ["sweating", "cold and pale", "worse on effort", "raised blood pressure"],
    ),
    "PULM": (
        [
            ("shortness of breath with wheezing", "SOB + wheeze"),
            ("a cough with green sputum", "prod cough, green"),
            ("coughing up blood", "haemoptysis"),
            ("an asthma attack", "asthma exac"),
            ("noisy breathing at night", "noct stridor"),
            ("low oxygen after a chest infection", "sats 89 post LRTI"),
            ("sharp pain on breathing in", "pleuritic pain"),
        ],
        ["feverish", "using an inhaler", "long-time smoker", "cannot lie flat"],
    ),
    "NEUR": (
        [
            ("sudden weakness on one side", "acute hemiparesis"),
            ("slurred speech", "dysarthria"),
            ("a first seizure", "1st seizure"),
            ("the worst headache ever", "thunderclap HA"),
            ("numbness of the face", "facial numbness"),
            ("a drooping mouth", "facial droop"),
            ("unsteady walking and tremor", "ataxia + tremor"),
        ],
        ["confused", "stiff neck", "double vision earlier", "does not remember it"],
    ),
    "ORTH": (
        [
            ("a swollen wrist after a fall", "FOOSH, wrist swollen"),
            ("hip pain and a shortened leg", "hip pain, leg short + ext rot"),
            ("a twisted ankle", "ankle inversion inj"),
            ("a dislocated shoulder", "shoulder disloc"),
            ("a knee that locks", "locked knee"),
            ("a finger bent the wrong way", "finger deformity"),
            ("a broken collarbone", "# clavicle"),
        ],
        ["cannot bear weight", "bruised", "fell at home", "injured at football"],
    ),
    "GAST": (
        [
            ("vomiting blood", "haematemesis"),
            ("black tarry stools", "melaena"),
            ("pain in the upper belly after meals", "epigastric pain pp"),
            ("yellow skin and dark urine", "jaundice"),
            ("watery diarrhoea", "D+V, watery"),
            ("difficulty swallowing food", "dysphagia"),
            ("a bloated painful abdomen", "abdo distension"),
        ],
        ["nauseated", "no appetite", "drinks alcohol daily", "losing weight"],
    ),
    "DERM": (
        [
            ("an itchy rash on both arms", "pruritic rash BL arms"),
            ("a mole that changed colour", "changing naevus"),
            ("blisters on the hands", "bullae hands"),
            ("scaly patches on the elbows", "plaques elbows"),
            ("hives after a new soap", "urticaria"),
            ("a spreading red patch of skin", "erythema spreading"),
            ("painful acne with cysts", "cystic acne"),
        ],
        ["scratching", "skin is dry", "new cream used", "edges are crusted"],
    ),
    "UROL": (
        [
            ("blood in the urine", "haematuria"),
            ("unable to pass urine", "acute retention"),
            ("burning when urinating", "dysuria"),
            ("pain from the flank to the groin", "loin to groin pain"),
            ("a swollen testicle", "testic swelling"),
            ("a blocked catheter", "catheter blocked"),
            ("urinating many times at night", "nocturia x6"),
        ],
        ["bladder feels full", "known kidney stone", "prostate enlarged", "urine is cloudy"],
    ),
    "OPHT": (
        [
            ("sudden loss of sight in one eye", "acute VL 1 eye"),
            ("flashes and floaters", "flashes + floaters"),
            ("a red painful eye", "red eye, painful"),
            ("metal dust in the eye", "corneal FB"),
            ("blurred vision with haloes", "blurred, haloes"),
            ("a swollen eyelid", "lid swelling"),
            ("a chemical splash in the eyes", "chem splash eyes"),
        ],
        ["light hurts", "wears contact lenses", "pupil looks large", "eye is watering"],
    ),
}
# institution: departments it sees, rows of training data.
INSTITUTIONS = {
    "north": (["CARD", "PULM", "NEUR"], 120),
    "east": (["NEUR", "ORTH", "DERM"], 150),
    "south": (["DERM", "GAST", "UROL"], 180),
    "west": (["UROL", "OPHT", "CARD"], 240),
}
DURATIONS = [
    ("an hour", "1h"),
    ("two hours", "2h"),
    ("six hours", "6h"),
    ("a day", "1d"),
    ("two days", "2d"),
    ("a week", "1/52"),
    ("three weeks", "3/52"),
]


def note_north(rng, words, short, detail, age, sex):
    """Ward shorthand, one line."""
    onset, end = rng.choice(DURATIONS)[1], rng.choice(["Obs stable", "NEWS 3", "GCS 15", "NKDA"])
    return f"{age}{sex} c/o {short}, {detail}. Onset {onset}. {end}."


def note_east(rng, words, short, detail, age, sex):
    """Full sentences."""
    who = {"M": "man", "F": "woman"}[sex]
    verb = rng.choice(["presents with", "reports", "was brought in with"])
    return f"A {age}-year-old {who} {verb} {words} for {rng.choice(DURATIONS)[0]}. Noted: {detail}."


def note_south(rng, words, short, detail, age, sex):
    """A form with fields."""
    since = rng.choice(DURATIONS)[1]
    return f"AGE {age} | SEX {sex} | SINCE {since} | FINDING {detail} | COMPLAINT {words}"


def note_west(rng, words, short, detail, age, sex):
    """A telephone message, the other way round."""
    who = {"M": "he", "F": "she"}[sex]
    start = rng.choice(["Caller says", "Family reports", "GP rang"])
    return f"{start}: {detail}, started {rng.choice(DURATIONS)[0]} ago, {words}; {who} is {age}"


NOTES = {"north": note_north, "east": note_east, "south": note_south, "west": note_west}


def is_test_pair(symptom, detail):
    """One detail of every symptom is kept for the test set."""
    return (symptom + detail) % 4 == 0


def make_row(rng, institution, department, for_test):
    symptoms, details = DEPARTMENTS[department]
    while True:
        i, j = rng.randrange(len(symptoms)), rng.randrange(len(details))
        if is_test_pair(i, j) == for_test:
            break
    words, short = symptoms[i]
    note = NOTES[institution](rng, words, short, details[j], rng.randint(18, 92), rng.choice("MF"))
    return {"prompt": f"{note}\nDepartment:", "completion": f" {department}"}


def write_rows(path, rows):
    with open(path + ".new", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")
    os.replace(path + ".new", path)


def write_all(options, name, count, for_test):
    """Rows of every department in every institution's way of writing."""
    rng = random.Random(f"{options.seed} {name}")
    cells = [(i, d) for d in DEPARTMENTS for i in INSTITUTIONS]
    rows = [make_row(rng, *cells[n % len(cells)], for_test) for n in range(count)]
    write_rows(os.path.join(options.out, f"{name}.jsonl"), rows)
    print(f"{name}: {count} rows, all {len(DEPARTMENTS)} departments, all four ways of writing")


def main():
    parser = argparse.ArgumentParser(description="Writes the demo's synthetic triage notes.")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--test-rows", type=int, default=128)
    parser.add_argument("--val-rows", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, default=1.0, help="times the rows of every institution"
    )
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    for institution, (departments, count) in INSTITUTIONS.items():
        rng = random.Random(f"{options.seed} {institution}")
        rows = [
            make_row(rng, institution, departments[n % len(departments)], False)
            for n in range(int(count * options.scale))
        ]
        rng.shuffle(rows)
        write_rows(os.path.join(options.out, institution + ".jsonl"), rows)
        print(f"{institution}: {len(rows)} rows, {', '.join(departments)}")
    write_all(options, "test", options.test_rows, True)
    if options.val_rows:
        write_all(options, "val", options.val_rows, False)


if __name__ == "__main__":
    main()
