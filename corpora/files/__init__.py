"""Files to contracts: txt, md, html, pdf, docx, CUADv1-format JSON, folders and zips of them, each parsed apart.

Nothing is parsed in the calling process: `reader.FileReader` hands a file to a child that is bounded in time and
memory. The parsers' libraries are therefore imported by `worker.py` alone.
"""
