"""How the research collection is made from its public sources; `demur datasets build` uses it.

index.json           what each set is: source repository, commit, licence, hash of its content
tables/NAME.jsonl.gz which records a set has, by hash: ids, labels, groups, splits, never a text
recipes.py           which files of the repository a set needs, and how to read them
readers.py           the file formats
collection.py        index and tables; a set is assembled from candidates and its table
tabulate.py          writes the tables from a folder that holds the collection
"""
