"""The boundary for what files say: sizes, depths and types are checked before anything is made of them, and the programs that files
hold (templates, regular expressions) run in a process with limits."""
