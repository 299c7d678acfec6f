-- A ledger as schema version 3 of s2node wrote it. Never edit: it stands for files in hospitals.
PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE breaker (
            destination TEXT PRIMARY KEY,
            failures INTEGER NOT NULL,
            opened_at REAL,
            reason TEXT,
            changed_at REAL NOT NULL
        ) WITHOUT ROWID
        ;
INSERT INTO "breaker" VALUES('pacs',0,NULL,NULL,4.0);
CREATE TABLE committed (
            output_id INTEGER NOT NULL REFERENCES output (id),
            destination TEXT NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (output_id, destination)
        ) WITHOUT ROWID
        ;
INSERT INTO "committed" VALUES(12,'pacs',4.0);
CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "counter" VALUES('repeats',3);
CREATE TABLE delivered (
            output_id INTEGER NOT NULL REFERENCES output (id),
            destination TEXT NOT NULL,
            status INTEGER NOT NULL,
            at REAL NOT NULL,
            PRIMARY KEY (output_id, destination)
        ) WITHOUT ROWID
        ;
INSERT INTO "delivered" VALUES(5,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(8,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(10,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(11,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(12,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(13,'pacs',0,4.0);
INSERT INTO "delivered" VALUES(14,'pacs',0,7.0);
CREATE TABLE delivery (
            job_id INTEGER NOT NULL REFERENCES job (id),
            destination TEXT NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            not_before REAL NOT NULL DEFAULT 0,
            refused INTEGER NOT NULL DEFAULT 0,
            reason TEXT, asked INTEGER NOT NULL DEFAULT 0, ask_not_before REAL NOT NULL DEFAULT 0, resent INTEGER NOT NULL DEFAULT 0, started_at REAL, owed_since REAL NOT NULL DEFAULT 0, fallback_for TEXT,
            PRIMARY KEY (job_id, destination)
        ) WITHOUT ROWID
        ;
INSERT INTO "delivery" VALUES(4,'pacs',0,0.0,0,NULL,0,0.0,0,NULL,5.0,NULL);
INSERT INTO "delivery" VALUES(5,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(6,'pacs',1,0.0,1,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(8,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(9,'pacs',0,0.0,0,NULL,0,0.0,0,NULL,5.0,NULL);
INSERT INTO "delivery" VALUES(10,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(11,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(12,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(13,'pacs',0,0.0,0,NULL,0,0.0,0,5.0,5.0,NULL);
INSERT INTO "delivery" VALUES(14,'pacs',0,0.0,0,NULL,0,0.0,0,6.5,6.0,NULL);
CREATE TABLE event (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            at REAL NOT NULL,
            from_state TEXT,
            to_state TEXT NOT NULL,
            code TEXT,
            note TEXT
        );
INSERT INTO "event" VALUES(1,1,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(2,2,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(3,3,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(4,4,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(5,5,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(6,6,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(7,6,5.0,'BUILT','PARKED','DELIVERY-REFUSED',NULL);
INSERT INTO "event" VALUES(8,7,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(9,8,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(10,9,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(11,10,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(12,11,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(13,12,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(14,13,1.0,NULL,'RECEIVING',NULL,NULL);
INSERT INTO "event" VALUES(15,14,6.0,NULL,'BUILT',NULL,'rejects job 10: superseded by a later generation');
INSERT INTO "event" VALUES(16,14,7.0,'BUILT','DELIVERED',NULL,NULL);
CREATE TABLE follower (name TEXT PRIMARY KEY, event_id INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO "follower" VALUES('log',16);
CREATE TABLE identity (job_id INTEGER PRIMARY KEY REFERENCES job (id), header BLOB NOT NULL);
INSERT INTO "identity" VALUES(13,X'00');
CREATE TABLE instance (
            job_id INTEGER NOT NULL REFERENCES job (id),
            sop_instance_uid TEXT NOT NULL,
            sop_class_uid TEXT NOT NULL,
            transfer_syntax_uid TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            received_at REAL NOT NULL,
            PRIMARY KEY (job_id, sop_instance_uid)
        ) WITHOUT ROWID
        ;
INSERT INTO "instance" VALUES(1,'1.1.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.1/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(2,'1.2.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.2/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(3,'1.3.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.3/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(4,'1.4.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.4/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(5,'1.5.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.5/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(6,'1.6.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.6/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(7,'1.7.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.7/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(8,'1.8.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.8/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(9,'1.8.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.8/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(10,'1.9.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.9/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(11,'1.9.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.9/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(12,'1.10.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.10/1.dcm','aa',5,1.0);
INSERT INTO "instance" VALUES(13,'1.11.1','1.2.840.10008.5.1.4.1.1.2','1.2.840.10008.1.2.1','inbox/1.11/1.dcm','aa',5,1.0);
CREATE TABLE job (
            id INTEGER PRIMARY KEY,
            series_instance_uid TEXT NOT NULL,
            generation INTEGER NOT NULL CHECK (generation >= 1),
            study_instance_uid TEXT NOT NULL,
            calling_ae TEXT NOT NULL,
            state TEXT NOT NULL,
            code TEXT,
            reason TEXT,
            attempt INTEGER NOT NULL DEFAULT 0,
            owner TEXT,
            leased_until REAL,
            not_before REAL NOT NULL DEFAULT 0,
            progress REAL NOT NULL DEFAULT 0,
            created_at REAL NOT NULL,
            updated_at REAL NOT NULL,
            last_received_at REAL NOT NULL,
            instances INTEGER NOT NULL DEFAULT 0, rejects INTEGER REFERENCES job (id),
            UNIQUE (series_instance_uid, generation),
            CHECK ((owner IS NULL) = (leased_until IS NULL)),
            CHECK (owner IS NULL OR state = 'READY')
        );
INSERT INTO "job" VALUES(1,'1.1',1,'1.99','CT','RECEIVING',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(2,'1.2',1,'1.99','CT','SETTLED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(3,'1.3',1,'1.99','CT','READY',NULL,NULL,1,'worker-9-dead',20.0,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(4,'1.4',1,'1.99','CT','BUILT',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(5,'1.5',1,'1.99','CT','DELIVERED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(6,'1.6',1,'1.99','CT','PARKED','DELIVERY-REFUSED','pacs: refused',0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(7,'1.7',1,'1.99','CT','REJECTED','CONTRAST-TAG',NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(8,'1.8',1,'1.99','CT','SUPERSEDED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(9,'1.8',2,'1.99','CT','BUILT',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(10,'1.9',1,'1.99','CT','SUPERSEDED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(11,'1.9',2,'1.99','CT','DELIVERED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(12,'1.10',1,'1.99','CT','COMMITTED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(13,'1.11',1,'1.99','CT','PURGED',NULL,NULL,0,NULL,NULL,0.0,0.0,1.0,5.0,2.0,1,NULL);
INSERT INTO "job" VALUES(14,'2.25.14',1,'1.99','S2NODE','DELIVERED',NULL,'rejects job 10: superseded by a later generation',0,NULL,NULL,0.0,1.0,6.0,7.0,6.0,0,10);
CREATE TABLE output (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            phase TEXT NOT NULL,
            kind TEXT NOT NULL,
            series_instance_uid TEXT NOT NULL,
            sop_instance_uid TEXT NOT NULL UNIQUE,
            sop_class_uid TEXT NOT NULL,
            path TEXT NOT NULL,
            sha256 TEXT NOT NULL
        );
INSERT INTO "output" VALUES(4,4,'arterial','ct_series','2.25.4','2.25.4.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.4/2.25.4.1.dcm','aa');
INSERT INTO "output" VALUES(5,5,'arterial','ct_series','2.25.5','2.25.5.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.5/2.25.5.1.dcm','aa');
INSERT INTO "output" VALUES(6,6,'arterial','ct_series','2.25.6','2.25.6.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.6/2.25.6.1.dcm','aa');
INSERT INTO "output" VALUES(8,8,'arterial','ct_series','2.25.8','2.25.8.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.8/2.25.8.1.dcm','aa');
INSERT INTO "output" VALUES(9,9,'arterial','ct_series','2.25.9','2.25.9.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.9/2.25.9.1.dcm','aa');
INSERT INTO "output" VALUES(10,10,'arterial','ct_series','2.25.10','2.25.10.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.10/2.25.10.1.dcm','aa');
INSERT INTO "output" VALUES(11,11,'arterial','ct_series','2.25.11','2.25.11.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.11/2.25.11.1.dcm','aa');
INSERT INTO "output" VALUES(12,12,'arterial','ct_series','2.25.12','2.25.12.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.12/2.25.12.1.dcm','aa');
INSERT INTO "output" VALUES(13,13,'arterial','ct_series','2.25.13','2.25.13.1','1.2.840.10008.5.1.4.1.1.2','outbox/2.25.13/2.25.13.1.dcm','aa');
INSERT INTO "output" VALUES(14,14,'','rejection_note','2.25.14','2.25.14.1','1.2.840.10008.5.1.4.1.1.88.59','outbox/2.25.14/2.25.14.1.dcm','aa');
CREATE TABLE pull (
            job_id INTEGER PRIMARY KEY REFERENCES job (id),
            archive TEXT NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            held INTEGER
        );
INSERT INTO "pull" VALUES(1,'archive',1,NULL);
CREATE TABLE purge (
            job_id INTEGER PRIMARY KEY REFERENCES job (id),
            at REAL NOT NULL,
            emptied_at REAL
        );
INSERT INTO "purge" VALUES(13,5.0,5.0);
CREATE TABLE quarantined (
            id INTEGER PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            path TEXT NOT NULL UNIQUE,
            sha256 TEXT NOT NULL,
            bytes INTEGER NOT NULL,
            calling_ae TEXT NOT NULL,
            reason TEXT NOT NULL,
            at REAL NOT NULL,
            times INTEGER NOT NULL DEFAULT 1,
            removed_at REAL
        );
INSERT INTO "quarantined" VALUES(1,4,'quarantine/1.4/1.dcm','bb',5,'CT','other pixels came first',3.0,1,NULL);
CREATE TABLE question (
            transaction_uid TEXT PRIMARY KEY,
            job_id INTEGER NOT NULL REFERENCES job (id),
            destination TEXT NOT NULL,
            asked_at REAL NOT NULL,
            answered_at REAL
        ) WITHOUT ROWID
        ;
INSERT INTO "question" VALUES('2.25.77',5,'pacs',4.0,NULL);
CREATE TABLE rejected (
            output_id INTEGER PRIMARY KEY REFERENCES output (id),
            note_id INTEGER REFERENCES job (id),
            at REAL NOT NULL
        );
INSERT INTO "rejected" VALUES(10,14,6.0);
CREATE TABLE request (
            id INTEGER PRIMARY KEY,
            calling_ae TEXT NOT NULL,
            transaction_uid TEXT NOT NULL,
            refs TEXT NOT NULL,
            asked_at REAL NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            not_before REAL NOT NULL DEFAULT 0,
            closed_at REAL,
            reason TEXT,
            UNIQUE (calling_ae, transaction_uid)
        );
INSERT INTO "request" VALUES(1,'CT','2.25.78','[["1.2.840.10008.5.1.4.1.1.2","1.4.1"]]',4.0,0,0.0,NULL,NULL);
INSERT INTO "request" VALUES(2,'CT','2.25.79','[]',4.0,0,0.0,5.0,NULL);
CREATE TABLE synthesis (
            job_id INTEGER NOT NULL REFERENCES job (id),
            phase TEXT NOT NULL,
            model_id TEXT NOT NULL,
            model_digest TEXT NOT NULL,
            seed INTEGER NOT NULL,
            sampler TEXT NOT NULL,
            steps INTEGER NOT NULL,
            provider TEXT NOT NULL,
            seconds TEXT NOT NULL,
            findings TEXT NOT NULL,
            PRIMARY KEY (job_id, phase)
        ) WITHOUT ROWID
        ;
INSERT INTO "synthesis" VALUES(4,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(5,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(6,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(8,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(9,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(10,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(11,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(12,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
INSERT INTO "synthesis" VALUES(13,'arterial','s2ldm-arterial-1','dd',0,'bridge',4,'cpu','{}','[]');
CREATE UNIQUE INDEX job_living ON job (series_instance_uid) WHERE state <> 'SUPERSEDED';
CREATE INDEX job_by_state ON job (state);
CREATE INDEX output_by_job ON output (job_id);
CREATE INDEX output_by_series ON output (series_instance_uid);
CREATE INDEX event_by_job ON event (job_id);
CREATE INDEX question_by_job ON question (job_id, destination);
CREATE INDEX instance_by_uid ON instance (sop_instance_uid);
CREATE INDEX rejected_by_note ON rejected (note_id);
COMMIT;
