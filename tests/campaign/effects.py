"""What the effects of jobs must look like, whatever happened to their workers. Decides only."""


def problems_of(effects: dict[str, list[str]], attempts: dict[str, int]) -> list[str]:
    """Sentences; none if every job was done once, and not begun again after that.

    `effects` are the lines of each job ("1 begins", "1 is done"), `attempts` what the control plane's record says.
    """
    told = [f"job {job} was never begun" for job in attempts if job not in effects]
    for job, lines in effects.items():
        begun = [line for line in lines if line.endswith(" begins")]
        done = [line for line in lines if line.endswith(" is done")]
        if len(done) != 1:
            told.append(f"job {job} was done {len(done)} times: {lines}")
        elif lines[-1] != done[0]:
            told.append(f"job {job} was done, and begun again: {lines}")
        if len(begun) != attempts.get(job):
            told.append(f"job {job} was begun {len(begun)} times, and its record says {attempts.get(job)}")
    return told
