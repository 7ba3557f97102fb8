-- Rows by a recursive query, an index, groups and a join.
create table t(a integer primary key, b text, c real);
with recursive n(i) as (select 1 union all select i + 1 from n where i < (select n from size))
insert into t select i, printf('%x-%d', i * 2654435761 % 1000003, i), i * 0.5 from n;
create index by_b on t(b);
select count(*), sum(c), max(b) from t where b > '5';
select substr(b, 1, 1) k, count(*), avg(c) from t group by k order by 2 desc, 1 limit 3;
select sum(x.c * y.a) from t x join t y on y.a = x.a / 2 where x.b like '%7%';
update t set c = c + 1 where a % 3 = 0;
select sum(c) from t;
