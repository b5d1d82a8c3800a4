"""A real pretrained model on the public editing data: every method on single edits, and many edits at once.

    python -m benchmarks.public [--model bases/smollm2] [--limit N] [--sets …] [--rows …] [--add]

sets.py        which edits: facts of CounterFact that the model knows, draws of CounterFact, KnowEdit and zsRE
rows.py        which ways of having them: base, r-ROME, FT-M, LoRA, IKE; sum, joint, scoped
compiled.py    compiling every single edit once, for all rows
asking.py      asking one row's edits, batch by batch, into a record
text.py        fluency and perplexity: what an edit does to other text
figures.py     from a row's replies to its figures (METHODS: CounterFact's scores, WILD's free generation)
page.py        the figures as tables of RESULTS.md
"""
