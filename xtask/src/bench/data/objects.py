# Dictionaries, lists, strings, method calls, big integers.
import sys


class Account:
    def __init__(self, name):
        self.name = name
        self.sum = 0

    def add(self, amount):
        self.sum += amount
        return self


def work(turn):
    accounts = {}
    for i in range(12000):
        key = "k%d" % (i * 7919 % 1009)
        account = accounts.get(key)
        if account is None:
            account = accounts[key] = Account(key)
        account.add(i ^ turn)
    names = sorted(accounts, key=lambda key: (accounts[key].sum % 97, key))
    text = ",".join(name.upper() for name in names if name.endswith("3"))
    product = 1
    for i in range(1, 200):
        product = product * (i + turn) % (1 << 521) + i
    return hex(product)[-8:], len(text), sum(account.sum for account in accounts.values())


for turn in range(int(sys.argv[1])):
    print(*work(turn))
